"""Rounding to fp8 as ComfyUI rounds a patched weight: at random, by a seed that follows from its key.

A delta is often smaller than half a step of fp8, so that rounding to nearest would lose most of it. At
random, a weight goes up or down with the probability of its place between two steps, and deltas are kept on
average.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_BLOCK = 1 << 16  # numbers that are rounded at a time
# dtype -> (bits of the mantissa, exponent of the smallest normal number, largest exponent)
_LAYOUT = {torch.float8_e4m3fn: (3, -6, 8), torch.float8_e5m2: (2, -14, 16)}


def seed_of(key: str) -> int:
    """Return ComfyUI's seed for a weight: the CRC-32 of its key."""
    return zlib.crc32(key.encode())


def round_at_random(values: Tensor, into: Tensor, seed: int) -> None:
    """Round float32 values to the fp8 of ``into``, up or down at random, with the bits of ComfyUI on a CPU.

    The values are first rounded to float16, and the random draws are bytes of torch's own CPU generator, one
    for each value in order. What lies beyond the largest number becomes that number.

    Source: ComfyUI 0.33, ``comfy.float.stochastic_rounding`` with the eager backend of comfy-kitchen 0.2.31.
    """
    generator = torch.Generator().manual_seed(seed)
    flat, target = values.reshape(-1), into.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        block = flat[start : start + _BLOCK]
        draws = torch.randint(0, 256, block.shape, dtype=torch.uint8, generator=generator)
        target[start : start + _BLOCK] = _rounded(block, draws, into.dtype)


def _rounded(values: Tensor, draws: Tensor, dtype: torch.dtype) -> Tensor:
    mantissa, smallest, largest = _LAYOUT[dtype]
    half = values.to(torch.float16)
    size = half.abs()
    # in float16, the logarithm of a number just below a power of two is that of the power
    exponent = torch.log2(size).floor_()
    first = torch.where(exponent < smallest, 0.0, float(1 << mantissa))  # steps below the power itself
    step = torch.exp2(exponent.clamp_(smallest, largest).to(torch.float32) - mantissa)
    above = (size.to(torch.float32) / step - first).to(torch.float16)
    steps = above.add_(draws.to(torch.float16), alpha=1 / 256).floor_().to(torch.float32).add_(first)
    limit = torch.finfo(dtype).max
    signs = torch.where(size == 0, 0.0, half.sign()).to(torch.float32)
    return steps.mul_(step).clamp_(max=limit).mul_(signs).to(dtype)
