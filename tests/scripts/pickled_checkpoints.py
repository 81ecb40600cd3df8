#!/usr/bin/env python3
"""Writes checkpoints as torch.save writes them, for the reader of pytorch_model.bin, with what torch reads from them.

    pip install torch==2.15.0 numpy==2.4.6
    python tests/scripts/pickled_checkpoints.py backends/tests/data/pickled

Each file NAME.bin has its tensors beside it in NAME.json: type, shape and bytes. What a reader must refuse has the words
that its error must have.
"""

import argparse
import collections
import json
import pathlib

import torch

TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint16: "U16",
    torch.uint32: "U32",
}


def numbers(count, dtype):
    values = torch.arange(count, dtype=torch.float32) * 0.37 - 1.5
    if dtype == torch.bool:
        return values > 0
    if not dtype.is_floating_point:
        return torch.arange(count).to(dtype)
    return values.to(dtype)


def told(tensor):
    data = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "bytes": bytes(data.tolist()).hex()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    def write(name, state, **how):
        torch.save(state, out / f"{name}.bin", **how)
        tensors = {key: told(value) for key, value in state.items()}
        (out / f"{name}.json").write_text(json.dumps({"torch": torch.__version__, "tensors": tensors}, indent=1) + "\n")

    def refuse(name, state, words, **how):
        torch.save(state, out / f"{name}.bin", **how)
        (out / f"{name}.json").write_text(json.dumps({"torch": torch.__version__, "refused": words}, indent=1) + "\n")

    # A state dict as a module gives it: ordered, with the versions of its modules, and two names for one tensor.
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(7, 4)
            self.norm = torch.nn.BatchNorm1d(4)
            self.head = torch.nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

    model = Model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(numbers(parameter.numel(), parameter.dtype).reshape(parameter.shape))
    write("module", model.state_dict())
    write("types", {str(dtype).removeprefix("torch."): numbers(6, dtype).reshape(2, 3) for dtype in TYPES})
    whole = numbers(24, torch.float32).reshape(4, 6)
    write("views", {"rows": whole[1:3], "flat": whole.flatten()[5:9], "all": whole, "one": whole[:1, 2:5], "none": whole[:0]})
    write("parameters", collections.OrderedDict(weight=torch.nn.Parameter(numbers(6, torch.float16)), scalar=torch.tensor(2.5)))
    write("protocol4", {"weight": numbers(6, torch.bfloat16)}, pickle_protocol=4)
    write("many", {f"layers.{layer}.weight": numbers(3, torch.float32) + layer for layer in range(300)})

    refuse("transposed", {"weight": whole.t()}, ["weight", "strides", "contiguous"])
    refuse("legacy", {"weight": whole}, ["before 1.6"], _use_new_zipfile_serialization=False)
    refuse("nested", {"epoch": 3, "state_dict": {"weight": whole}}, ["epoch", "expected a tensor"])
    refuse("code", {"weight": whole, "run": print}, ["print"])
    refuse("object", {"weight": whole, "path": pathlib.PurePosixPath("x")}, ["pathlib"])
    refuse("sparse", {"weight": whole.to_sparse()}, ["_rebuild_sparse_tensor"])
    refuse("quantized", {"weight": torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8)}, ["_rebuild_qtensor"])
    refuse("complex", {"weight": torch.zeros(2, dtype=torch.complex64)}, ["ComplexFloatStorage"])


if __name__ == "__main__":
    main()
