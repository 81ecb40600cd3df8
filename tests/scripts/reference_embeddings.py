#!/usr/bin/env python3
"""Write the vectors that a Sentence Transformers model should give for some texts, computed in f32 by transformers.

    python3 tests/scripts/reference_embeddings.py all-MiniLM-L6-v2/ tests/data/all-minilm-l6-v2.embeddings.json

The model's pooling is the mean over tokens, then the length becomes one; texts are cut at the model's length, each is
computed alone. Needs: tests/scripts/requirements-cases.txt.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

TEXTS = [
    "The capital of France is Paris.",
    "Paris is the seat of the French government.",
    "How do I bake bread without yeast?",
    "x",
    "Zoë naïvely ate 3½ crêpes — at 7:45 a.m., in Zürich! 你好, мир 🙂",
    "def add(a, b):\n    return a + b",
    "  spaces   and\ttabs\nand lines  ",
    "A swarm of small machines does what a large one does. " * 40,
]


def main():
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    torch.set_num_threads(1)
    rows = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        vector = torch.nn.functional.normalize(states.mean(0), dim=0)
        rows.append({"text": text, "tokens": len(states), "vector": [round(float(value), 7) for value in vector]})
    target.write_text(json.dumps({"transformers": transformers.__version__, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
