#!/usr/bin/env python3
"""Write the tokens that a GGUF model should produce, computed by an implementation that is not ours.

The reference is transformers on PyTorch: the file's weights are dequantised to f32 and every product is computed in
f32, on one thread, with eager attention. Quantised engines round activations too and so disagree among themselves; the
f32 computation is what all of them approximate, and the only one worth being compared with.

Each case records its prompt (a conversation or a raw text), the prompt's token ids, the greedy continuation without a
stop at the end-of-text token, and for each position the gap between the two largest logits. A small gap marks a near
tie, where rounding decides: a test may then accept that an implementation leaves the reference, and nowhere else.

The continuation is checked against itself: the logits of one uncached forward over prompt and continuation must choose
the same tokens as the cached steps did, wherever the gap is above the noise.

Needs: torch, transformers, gguf, numpy (any recent versions; they are written into the file).

    python3 tests/scripts/reference_tokens.py model.gguf tests/data/NAME.tokens.json
"""

import argparse
import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

# What differs between two correct f32 computations of one logit stays below this; measured between cached and uncached.
NOISE = 1e-3


def chat(*turns):
    """A conversation in the order given, the person first unless the first turn is a (role, text) pair."""
    messages = []
    role = "user"
    for turn in turns:
        if isinstance(turn, tuple):
            messages.append({"role": turn[0], "content": turn[1]})
            continue
        messages.append({"role": role, "content": turn})
        role = "assistant" if role == "user" else "user"
    return {"messages": messages}


CASES = {
    "capital": chat("What is the capital of France?"),
    "system": chat(("system", "You answer in one short sentence, like a pirate."), "Why is the sky blue?"),
    "turns": chat("My name is Ada and I like bridges.", "Nice to meet you, Ada!", "What is my name?"),
    "code": chat("Write a Rust function that returns the n-th Fibonacci number."),
    "multilingual": chat("Traduis en français : « The weather is beautiful today. » 🌞 日本語でもお願いします。"),
    "story": {"text": "Once upon a time, in a village at the edge of a dark forest,"},
    "numbers": {"text": "1, 1, 2, 3, 5, 8, 13, 21, 34,"},
    "python": {"text": 'def quicksort(items):\n    """Sort a list."""\n    if len(items) <= 1:\n'},
    "german": {"text": "Der schnelle braune Fuchs springt über den faulen Hund. Die Straße ist"},
    "whitespace": {"text": "  Name\tAge    Year\n  Ann\t31     1993\n  Bob\t1000000   ٢٠٢٤\n\n  Total:"},
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate for each prompt (default: 64)")
    return parser.parse_args()


def set_pre_tokenizer(tokenizers, tokenizer, name):
    """Split text as the file's `tokenizer.ggml.pre` says.

    transformers leaves that key out: it would split digits off only where the vocabulary happens to, and give other
    tokens for several spaces before a number.
    """
    if name != "smollm":
        sys.exit(f"tokenizer.ggml.pre is {name!r}: only 'smollm' is known here; add its pre-tokenizer")
    split = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def prompt_ids(tokenizer, case):
    """The rendered prompt and its token ids: template markers become the tokens they name, nothing else is added."""
    if "text" in case:
        rendered = case["text"]
    else:
        rendered = tokenizer.apply_chat_template(case["messages"], tokenize=False, add_generation_prompt=True)
    return rendered, tokenizer(rendered, add_special_tokens=False)["input_ids"]


def top_two_gap(logits):
    """The index of the largest logit, and its distance from the second largest."""
    best = logits.topk(2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])


def generate(torch, model, ids, count):
    """`count` greedy tokens after `ids` with a cache, and the gap at each."""
    tokens, gaps, cache = [], [], None
    step = torch.tensor([ids])
    for _ in range(count):
        output = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        token, gap = top_two_gap(output.logits[0, -1])
        tokens.append(token)
        gaps.append(gap)
        step = torch.tensor([[token]])
    return tokens, gaps


def check_uncached(torch, model, name, ids, tokens, gaps):
    """Stop if one forward over everything would have chosen other tokens."""
    logits = model(input_ids=torch.tensor([ids + tokens]), use_cache=False).logits[0]
    for index, (token, gap) in enumerate(zip(tokens, gaps)):
        chosen, uncached_gap = top_two_gap(logits[len(ids) - 1 + index])
        if abs(gap - uncached_gap) > NOISE or (chosen != token and gap > NOISE):
            sys.exit(
                f"{name}: token {index} is {token} with a gap of {gap} by cached steps, "
                f"{chosen} with {uncached_gap} in one forward: this reference cannot be trusted"
            )


def main():
    arguments = parse_arguments()
    import gguf
    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder, name = str(arguments.model.parent), arguments.model.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    pre = gguf.GGUFReader(arguments.model).fields["tokenizer.ggml.pre"].contents()
    set_pre_tokenizer(tokenizers, tokenizer, pre)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    cases = []
    for case_name, case in CASES.items():
        rendered, ids = prompt_ids(tokenizer, case)
        tokens, gaps = generate(torch, model, ids, arguments.tokens)
        check_uncached(torch, model, case_name, ids, tokens, gaps)
        text = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        entry = {"name": case_name, **case, "rendered": rendered, "prompt_ids": ids, "tokens": tokens}
        cases.append({**entry, "gaps": [round(gap, 5) for gap in gaps], "text": text})
        print(f"{case_name}: {len(ids)} prompt tokens, smallest gap {min(gaps):.4f}: {text!r}")

    digest = hashlib.sha256(arguments.model.read_bytes()).hexdigest()
    header = {
        "model": {"file": name, "sha256": digest, "bytes": arguments.model.stat().st_size},
        "reference": {
            "computation": "f32 weights dequantised from the file, f32 products, eager attention, one thread, greedy",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "gguf": version("gguf"),
        },
    }
    write(arguments.output, header, cases)


def write(path, header, cases):
    """One case a line: compact, and a change shows in a diff as the case that changed."""
    compact = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    head = ",\n".join(f"{compact(key)}:{compact(value)}" for key, value in header.items())
    body = ",\n".join(compact(case) for case in cases)
    path.write_text("{" + head + ',\n"cases":[\n' + body + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
