#!/usr/bin/env python3
"""Write a Whisper model that CTranslate2 has converted as Hugging Face's libraries do.

    python3 tests/scripts/convert_ctranslate2_whisper.py whisper-ct2/ whisper/

The first directory has config.json, model.bin and tokenizer.json; the second gets config.json, model.safetensors,
tokenizer.json, tokenizer_config.json, preprocessor_config.json and generation_config.json. Weights of 8 bits become
floats again, those of 16 bits stay what they are.

The format is that of `python/ctranslate2/specs/model_spec.py` in OpenNMT/CTranslate2, the names those of
`TransformersConverter` in `python/ctranslate2/converters/transformers.py`.

Needs: numpy, safetensors.
"""

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

VERSION = 6
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# `common_spec.Activation`
GELU = 3
LAYERS_MAX = 64


# --- model.bin -------------------------------------------------------------------------------------------------------


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise SystemExit(f"model.bin: expected {count} bytes at {self.at}, found its end")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind):
        (value,) = struct.unpack("<" + kind, self.take(struct.calcsize(kind)))
        return value

    def text(self):
        return self.take(self.number("H")).rstrip(b"\0").decode()


def variables(path):
    """Every variable by its name; another name for one is in there too."""
    reader = Reader(path.read_bytes())
    version, spec = reader.number("I"), reader.text()
    reader.number("I")  # The revision of the specification.
    if (version, spec) != (VERSION, "WhisperSpec"):
        raise SystemExit(f"{path}: expected WhisperSpec in version {VERSION}, found {spec} in version {version}")
    found = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind = reader.number("B")
        if kind not in TYPES:
            raise SystemExit(f"{name}: expected one of the types {sorted(TYPES)}, found {kind}")
        found[name] = np.frombuffer(reader.take(reader.number("I")), TYPES[kind]).reshape(shape)
    for _ in range(reader.number("I")):
        name = reader.text()
        found[name] = found[reader.text()]
    return found


def floats(stored, name):
    """A variable as floats. Rows of whole numbers have been multiplied by a scale, each by its own."""
    values = stored[name]
    if values.dtype == np.int8:
        scale = stored[name + "_scale"].astype(np.float32)
        return values / scale.reshape(-1, *[1] * (values.ndim - 1))
    if values.dtype not in (np.float16, np.float32):
        raise SystemExit(f"{name}: expected floats or numbers of 8 bits, found {values.dtype}")
    return values


# --- Weights ---------------------------------------------------------------------------------------------------------


def layer(stored, source, target):
    """Parts of a layer whose names differ."""
    for part in ("weight", "bias"):
        query, key, value = np.split(floats(stored, f"{source}/self_attention/linear_0/{part}"), 3)
        yield f"{target}.self_attn.q_proj.{part}", query
        yield f"{target}.self_attn.v_proj.{part}", value
        yield from key_projection(f"{target}.self_attn.k_proj", part, key)
        yield f"{target}.self_attn.out_proj.{part}", floats(stored, f"{source}/self_attention/linear_1/{part}")
        yield f"{target}.fc1.{part}", floats(stored, f"{source}/ffn/linear_0/{part}")
        yield f"{target}.fc2.{part}", floats(stored, f"{source}/ffn/linear_1/{part}")
        if target.startswith("model.decoder"):
            yield f"{target}.encoder_attn.q_proj.{part}", floats(stored, f"{source}/attention/linear_0/{part}")
            key, value = np.split(floats(stored, f"{source}/attention/linear_1/{part}"), 2)
            yield f"{target}.encoder_attn.v_proj.{part}", value
            yield from key_projection(f"{target}.encoder_attn.k_proj", part, key)
            yield f"{target}.encoder_attn.out_proj.{part}", floats(stored, f"{source}/attention/linear_2/{part}")
    yield from norm(stored, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
    yield from norm(stored, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    if target.startswith("model.decoder"):
        yield from norm(stored, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")


def key_projection(name, part, values):
    """Keys have no bias; what is stored for it is zero."""
    if part == "weight":
        yield f"{name}.weight", values
    elif values.any():
        raise SystemExit(f"{name}: expected no bias")


def norm(stored, source, target):
    yield f"{target}.weight", floats(stored, f"{source}/gamma")
    yield f"{target}.bias", floats(stored, f"{source}/beta")


def weights(stored):
    for number in (1, 2):
        for part in ("weight", "bias"):
            yield f"model.encoder.conv{number}.{part}", floats(stored, f"encoder/conv{number}/{part}")
    yield "model.decoder.embed_tokens.weight", floats(stored, "decoder/embeddings/weight")
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", floats(stored, f"{side}/position_encodings/encodings")
        for number in range(layers(stored, side)):
            yield from layer(stored, f"{side}/layer_{number}", f"model.{side}.layers.{number}")
        yield from norm(stored, f"{side}/layer_norm", f"model.{side}.layer_norm")


def layers(stored, side):
    return next(count for count in range(LAYERS_MAX) if f"{side}/layer_{count}/ffn/linear_0/weight" not in stored)


# --- Files -----------------------------------------------------------------------------------------------------------


def configurations(stored, settings, tokenizer):
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    vocabulary, width = stored["decoder/embeddings/weight"].shape
    if int(stored["decoder/activation"]) != GELU:
        raise SystemExit(f"decoder/activation: expected {GELU}, found {stored['decoder/activation']}")
    tokens = {"bos_token_id": end, "pad_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "d_model": width,
        "vocab_size": vocabulary,
        "num_mel_bins": stored["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(stored["encoder/position_encodings/encodings"]),
        "max_target_positions": len(stored["decoder/position_encodings/encodings"]),
        "tie_word_embeddings": True,
        **tokens,
    }
    for side in ("encoder", "decoder"):
        # The format tells the heads of the decoder only; Whisper's encoder has as many.
        config[f"{side}_attention_heads"] = int(stored["decoder/num_heads"])
        config[f"{side}_layers"] = layers(stored, side)
        config[f"{side}_ffn_dim"] = len(stored[f"{side}/layer_0/ffn/linear_0/weight"])
    # As OpenAI's code tells them apart.
    multilingual = vocabulary >= 51865
    none = ids["<|notimestamps|>"]
    generation = {
        **tokens,
        "alignment_heads": settings["alignment_heads"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "suppress_tokens": settings["suppress_ids"],
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": none,
        "return_timestamps": False,
        "forced_decoder_ids": [[1, None], [2, ids["<|transcribe|>"]]] if multilingual else [[1, none]],
    }
    if multilingual:
        languages = set(settings["lang_ids"])
        generation["lang_to_id"] = {token: number for token, number in ids.items() if number in languages}
        generation["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("translate", "transcribe")}
    special = [token["content"] for token in tokenizer["added_tokens"] if token["special"]]
    texts = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    texts |= {"tokenizer_class": "WhisperTokenizer", "clean_up_tokenization_spaces": True}
    texts["additional_special_tokens"] = [token for token in special if token != "<|endoftext|>"]
    hearing = {"feature_extractor_type": "WhisperFeatureExtractor", "processor_class": "WhisperProcessor"}
    hearing |= {"feature_size": config["num_mel_bins"], "sampling_rate": 16000, "hop_length": 160, "n_fft": 400}
    hearing |= {"chunk_length": 30, "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False}
    return {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": hearing,
        "tokenizer_config.json": texts,
    }


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    stored = variables(source / "model.bin")
    settings = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    for name, value in configurations(stored, settings, tokenizer).items():
        (target / name).write_text(json.dumps(value, indent=1) + "\n")
    tensors = {name: np.ascontiguousarray(values) for name, values in weights(stored)}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
