"""Choosing which entries of a delta survive: the largest ones, or a reproducible random subset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .thresholds import magnitude_threshold

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_DRAWS_PER_WORD = 4  # one 64-bit word gives four 16-bit draws
_BLOCK = 1 << 13  # words made at a time on the CPU
_COUNTER = np.arange(_BLOCK, dtype=np.uint64) * np.uint64(_GOLDEN % 2**64)
_ROUNDS = (
    (np.uint64(30), np.uint64(_MIX_1 % 2**64)),
    (np.uint64(27), np.uint64(_MIX_2 % 2**64)),
    (np.uint64(31), None),
)


def keep_largest(
    deltas: Tensor, density: float, thresholds: Tensor | None = None, overwrite: bool = False
) -> Tensor:
    """Zero all but the largest entries of each matrix (TIES-Merging, step 1).

    ``deltas`` is ``(n, ..., out, in)``. ``thresholds`` ``(n, ..., 1, 1)`` are found here if they are not
    given. Entries tied with the smallest one that is kept are kept too.
    """
    if density >= 1:
        return deltas
    if thresholds is None:
        found = [magnitude_threshold(matrix, density) for matrix in deltas.flatten(0, -3)]
        thresholds = torch.tensor(found).view(*deltas.shape[:-2], 1, 1)
    if deltas.device.type != "cpu" or deltas.dtype != torch.float32:
        return deltas * (deltas.abs() >= thresholds.to(deltas.device))
    kept = deltas if overwrite else torch.empty_like(deltas)
    # hardshrink is one pass without a mask, and drops what is equal: hence the next smaller limits
    limits = thresholds.flatten().to(torch.float32).nextafter(torch.tensor(0.0))
    matrices, places = deltas.flatten(0, -3).unbind(), kept.flatten(0, -3).unbind()
    for matrix, limit, out in zip(matrices, limits.tolist(), places, strict=True):
        torch.ops.aten.hardshrink.out(matrix, limit, out=out)
    return kept


def drop_random(deltas: Tensor, density: float, generator: MaskGenerator, overwrite: bool = False) -> Tensor:
    """Zero entries at random and divide the rest by ``density`` (DARE); density 0 gives zero, not NaN."""
    if density >= 1:
        return deltas
    if density <= 0:
        return torch.zeros_like(deltas)
    kept = deltas if overwrite else torch.empty_like(deltas)
    masks = generator.masks(deltas, density)
    for delta, mask, out in zip(deltas.unbind(), masks, kept.unbind(), strict=True):
        torch.mul(delta, mask, out=out).div_(density)
    return kept


class MaskGenerator:
    """Random masks that depend on a key and on the position of the entry, and on nothing else.

    The draws are the 16-bit quarters of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) at a counter, in integer
    arithmetic that wraps alike everywhere. So the masks are the same bits on every device, for every number
    of threads and however a matrix is cut into tiles, and no global random state is read or written.
    """

    def __init__(self, keys: Sequence[int], first: int = 0) -> None:
        """``keys``: one signed 64-bit integer a LoRA. ``first``: flat index of the first entry of a tile."""
        self.keys = tuple(keys)
        self.first = first

    def masks(self, like: Tensor, density: float) -> Iterator[Tensor]:
        """For each LoRA of ``like`` ``(n, ..., rows, columns)``: 1 with probability ``density``, else 0.

        In the dtype of ``like``; the buffer is reused from one LoRA to the next.
        """
        mask = torch.empty(like.shape[1:], dtype=like.dtype, device=like.device)
        fill = _fill_on_cpu if like.device.type == "cpu" else _fill
        below = min(round(density * 65536) - 32768, 32767)
        for key in self.keys:
            fill(mask.view(-1), key, self.first)
            yield mask.lt_(below)


def mask_key(seed: int, layer: str, lora: str, part: str = "delta") -> int:
    """The signed 64-bit key of one mask, from what it may depend on."""
    text = "\x1f".join((str(seed), layer, lora, part))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _fill(draws: Tensor, key: int, first: int) -> None:
    """Write the 16-bit draws of a key from number ``first`` on into a flat tensor."""
    start, skip = divmod(first, _DRAWS_PER_WORD)
    words = -(-(skip + draws.numel()) // _DRAWS_PER_WORD)
    counter = torch.arange(start + 1, start + 1 + words, device=draws.device).mul_(_GOLDEN)
    draws.copy_(_mix(counter.add_(key)).view(torch.int16)[skip : skip + draws.numel()])


def _fill_on_cpu(draws: Tensor, key: int, first: int) -> None:
    """``_fill`` in blocks that stay in the cache, by numpy, whose unsigned shifts need no masks."""
    start, skip = divmod(first, _DRAWS_PER_WORD)
    total = draws.numel()
    counter = _COUNTER[: -(-(skip + total) // _DRAWS_PER_WORD)]
    z, shifted = np.empty_like(counter), np.empty_like(counter)
    block = torch.from_numpy(z.view(np.int16))
    for done in range(-skip, total, block.numel()):
        np.add(counter, np.uint64(((start + 1) * _GOLDEN + key) % 2**64), out=z)
        for shift, factor in _ROUNDS:
            np.right_shift(z, shift, out=shifted)
            np.bitwise_xor(z, shifted, out=z)
            if factor is not None:
                np.multiply(z, factor, out=z)
        end = min(done + block.numel(), total)
        draws[max(done, 0) : end].copy_(block[max(-done, 0) : end - done])
        start += len(counter)


def hash_words(key: int, count: int) -> Tensor:
    """``count`` 64-bit words of the stream of ``key``, as signed integers on the CPU."""
    return _mix(torch.arange(1, count + 1).mul_(_GOLDEN).add_(key))


def _mix(z: Tensor) -> Tensor:
    """The output function of splitmix64, in place; masks undo the sign that int64 shifts keep."""
    z ^= (z >> 30) & 0x3FFFFFFFF
    z *= _MIX_1
    z ^= (z >> 27) & 0x1FFFFFFFFF
    z *= _MIX_2
    z ^= (z >> 31) & 0x1FFFFFFFF
    return z
