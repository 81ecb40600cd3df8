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

A model without a chat template is asked the raw texts only.

Needs: torch, transformers, accelerate, gguf, numpy, and for a vocabulary of SentencePiece sentencepiece and protobuf
(any recent versions; they are written into the file).

    python3 tests/scripts/reference_tokens.py model.gguf tests/data/NAME.tokens.json
    python3 tests/scripts/reference_tokens.py gemma-3-270m-q4_k_m.gguf tests/data/gemma-3-270m-q4_k_m.tokens.json \\
        --cases story,python,translation,whitespace,long
"""

import argparse
import hashlib
import json
import platform
import re
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
    "translation": {"text": "English: The weather is beautiful today. 🌞\nFrançais : Il fait beau. 日本語："},
    # Longer than the windows of some layers, so that each token has lost sight of the first.
    "long": {"text": " ".join(f"The square of {number} is {number * number}." for number in range(1, 51))},
    "whitespace": {"text": "  Name\tAge    Year\n  Ann\t31     1993\n  Bob\t1000000   ٢٠٢٤\n\n  Total:"},
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("output", type=Path, help="the JSON file to write")
    every = ", ".join(CASES)
    parser.add_argument("--cases", default=every, help=f"which cases (default: all that the model can answer of {every})")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to generate for each prompt (default: 64)")
    return parser.parse_args()


def text_codec(arguments, reader):
    """What makes token ids of a text, what makes text of token ids, and what renders conversations, if anything does."""
    import transformers

    if reader.fields["tokenizer.ggml.model"].contents() == "llama":
        encode, decode = sentence_piece(reader)
        render = None
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model.parent, gguf_file=arguments.model.name)
        set_pre_tokenizer(tokenizer, reader.fields["tokenizer.ggml.pre"].contents())
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        render = lambda turns: tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if "tokenizer.chat_template" not in reader.fields:
        return encode, decode, None
    if render is None:
        sys.exit("chat templates are not known for a vocabulary of SentencePiece: add them here")
    return encode, decode, render


def set_pre_tokenizer(tokenizer, name):
    """Split text as the file's `tokenizer.ggml.pre` says.

    transformers leaves that key out: it would split digits off only where the vocabulary happens to, and give other
    tokens for several spaces before a number.
    """
    import tokenizers

    if name != "smollm":
        sys.exit(f"tokenizer.ggml.pre is {name!r}: only 'smollm' is known here; add its pre-tokenizer")
    split = tokenizers.pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def sentence_piece(reader):
    """SentencePiece itself, with the model that the vocabulary was written from."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as messages

    value = lambda key: reader.fields[f"tokenizer.ggml.{key}"].contents()
    model = messages.ModelProto()
    model.trainer_spec.model_type = messages.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = value("add_space_prefix")
    model.normalizer_spec.remove_extra_whitespaces = False
    unknown = value("unknown_token_id")
    for place, (token, score, kind) in enumerate(zip(value("tokens"), value("scores"), value("token_type"))):
        # The file has spaces in tokens that people added, and calls the unknown one a control.
        piece = model.pieces.add(piece=token.replace(" ", "\u2581"), score=score)
        piece.type = messages.ModelProto.SentencePiece.UNKNOWN if place == unknown else kind
    for name in ["bos", "eos", "unknown"]:
        setattr(model.trainer_spec, {"unknown": "unk"}.get(name, name) + "_id", value(f"{name}_token_id"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    begin = [value("bos_token_id")] if value("add_bos_token") else []
    return lambda text: begin + processor.encode(text), processor.decode


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
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder, name = str(arguments.model.parent), arguments.model.name
    encode, decode, render = text_codec(arguments, gguf.GGUFReader(arguments.model))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
    ).eval()

    cases = []
    for case_name in re.split(", *", arguments.cases):
        case = CASES[case_name]
        if "messages" in case and render is None:
            continue
        # Template markers become the tokens they name, nothing else is added.
        rendered = case["text"] if "text" in case else render(case["messages"])
        ids = encode(rendered)
        tokens, gaps = generate(torch, model, ids, arguments.tokens)
        check_uncached(torch, model, case_name, ids, tokens, gaps)
        text = decode(tokens)
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
            **{name: version(name) for name in ["tokenizers", "sentencepiece", "gguf"]},
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
