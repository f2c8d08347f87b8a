"""Recognising a LoRA by its deltas, whatever its file is called and however it is factored."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..lora import Lora, LowRank
from ..methods.sparsify import hash_words, mask_key

_BITS = 16
_MAX_LAYERS = 32


def fingerprint(lora: Lora) -> int:
    """Return a 16-bit sketch of the deltas of one LoRA (sign random projection; Charikar, STOC 2002).

    It seeds the random masks. Renaming a file, rewriting it at another rank, alpha or scale, or moving it
    within the list leaves the masks unchanged, because none of these changes the sign of a projection of the
    delta. Computed in float64 on the CPU from up to 32 layers, from the factors alone where they are low
    rank.
    """
    lora = lora.origin or lora
    signs = cache(_random_signs)  # many layers have the same sizes; forgotten when this call returns
    names = sorted(lora.layers)
    step = -(-len(names) // _MAX_LAYERS) or 1
    total = torch.zeros(_BITS, dtype=torch.float64)
    for name in names[::step]:
        layer = lora.layers[name]
        rows, columns = layer.matrix_shape
        left, right = signs("up", rows), signs("down", columns)  # (rows or columns, bits)
        if isinstance(layer, LowRank):
            up = left.T @ layer.up.to("cpu", torch.float64)  # (bits, r)
            down = layer.down.to("cpu", torch.float64) @ right  # (r, bits)
            total += _random_signs(name, 1)[0] * (up * down.T).sum(dim=1) * layer.scale
        else:
            seen = left.to(torch.float32).T @ layer.matrix(torch.device("cpu"))  # (bits, columns)
            total += _random_signs(name, 1)[0] * (seen.to(torch.float64) * right.T).sum(dim=1)
    for name in sorted(lora.base_dependent):  # what these add is known only with the base model
        for tensor in lora.base_dependent[name].tensors:
            matrix = tensor.to("cpu", torch.float64).reshape(len(tensor) if tensor.ndim else 1, -1)
            seen = signs("up", matrix.shape[0]).T @ matrix
            total += _random_signs(name, 1)[0] * (seen * signs("down", matrix.shape[1]).T).sum(dim=1)
    return sum(1 << bit for bit, value in enumerate(total.tolist()) if value > 0)


def _random_signs(stream: str, count: int) -> Tensor:
    """``(count, bits)`` of +1 and -1 in float64, always the same for the same stream and count."""
    words = hash_words(mask_key(0, stream, "fingerprint"), count)
    return ((words[:, None] >> torch.arange(_BITS)) & 1).to(torch.float64).mul_(2).sub_(1)
