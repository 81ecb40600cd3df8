#!/usr/bin/env python3
"""Write experts as GPT-OSS has them, packed in 4-bit floats and as transformers unpacks them.

    stacked_experts.py OUT/model.safetensors

One tensor holds a part of all experts of a layer. `gate_up_proj_blocks` and `_scales` are random, but for scales at the
ends of what a byte holds; `gate_up_proj` is what transformers makes of them, `[experts, inputs, outputs]` in bfloat16;
`gate_up_proj_bias` goes with both.

Needs: tests/scripts/requirements-cases.txt.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

EXPERTS, OUTPUTS, INPUTS = 3, 8, 64
BLOCK = 32
ENDS = [0, 1, 2, 126, 127, 128, 254, 255]


def main():
    random = torch.Generator().manual_seed(7)
    blocks = torch.randint(0, 256, (EXPERTS, OUTPUTS, INPUTS // BLOCK, BLOCK // 2), generator=random)
    scales = torch.randint(110, 140, (EXPERTS, OUTPUTS, INPUTS // BLOCK), generator=random)
    scales[1, :, 0] = torch.tensor(ENDS)
    blocks, scales = blocks.to(torch.uint8), scales.to(torch.uint8)
    prefix = "model.layers.0.mlp.experts."
    tensors = {
        "gate_up_proj_blocks": blocks,
        "gate_up_proj_scales": scales,
        "gate_up_proj": convert_moe_packed_tensors(blocks, scales),
        "gate_up_proj_bias": torch.randn(EXPERTS, OUTPUTS, generator=random).to(torch.bfloat16),
    }
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
