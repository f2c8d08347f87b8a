"""Choosing which entries of a delta survive: the largest ones, or a reproducible random subset."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_DRAWS_PER_WORD = 4  # one 64-bit word gives four 16-bit draws


def magnitude_threshold(values: Tensor, density: float) -> float:
    """A magnitude that parts the ``int(density * numel)`` largest from the rest; inf when none is kept.

    Exact: found by selection, not by sampling. It lies midway between the smallest entry kept and the
    largest one dropped, so that a delta that is made again in other tiles or on another device, and differs
    in its last bit, is cut at the same place; among ties it is their own magnitude. On the CPU the bits of
    the magnitudes are selected as integers, whose order is that of the values. ``values`` is float32 of any
    shape and is left as it is.
    """
    kept = int(density * values.numel())
    if kept == 0:
        return math.inf
    if kept >= values.numel():
        return 0.0
    rank = values.numel() - kept
    magnitudes = values.detach().abs().flatten()
    if values.device.type == "cpu":
        bits = magnitudes.numpy().view(np.int32)
        bits.partition(rank)
        dropped, smallest = bits[:rank].max(), bits[rank]
        low, high = np.array((dropped, smallest)).view(np.float32)
    else:
        high = magnitudes.kthvalue(rank + 1).values
        low = torch.where(magnitudes < high, magnitudes, 0).max()
    middle = low + (high - low) / 2
    return float(middle if middle > low else high)


def keep_largest(deltas: Tensor, density: float, thresholds: Tensor | None = None) -> Tensor:
    """Zero all but the largest entries of each matrix (TIES-Merging, step 1).

    ``deltas`` is ``(n, ..., out, in)``. ``thresholds`` ``(n, ..., 1, 1)`` are found here if they are not
    given. Entries tied with the smallest one that is kept are kept too.
    """
    if density >= 1:
        return deltas
    if thresholds is None:
        found = [magnitude_threshold(matrix, density) for matrix in deltas.flatten(0, -3)]
        thresholds = torch.tensor(found, device=deltas.device).view(*deltas.shape[:-2], 1, 1)
    return deltas * (deltas.abs() >= thresholds)


def drop_random(deltas: Tensor, density: float, generator: MaskGenerator) -> Tensor:
    """Zero entries at random and divide the rest by ``density`` (DARE); density 0 gives zero, not NaN."""
    if density >= 1:
        return deltas
    if density <= 0:
        return torch.zeros_like(deltas)
    return (deltas * generator.keep(deltas, density)).div_(density)


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

    def keep(self, like: Tensor, density: float) -> Tensor:
        """Mask in the shape of ``like`` ``(n, ..., rows, columns)``, True with probability ``density``."""
        per_lora = like[0].numel()
        start, skip = divmod(self.first, _DRAWS_PER_WORD)
        words = -(-(skip + per_lora) // _DRAWS_PER_WORD)
        counter = torch.arange(start + 1, start + 1 + words, device=like.device).mul_(_GOLDEN)
        below = min(round(density * 65536) - 32768, 32767)
        mask = torch.empty((len(self.keys), per_lora), dtype=torch.bool, device=like.device)
        for row, key in zip(mask, self.keys, strict=True):
            draws = _mix(counter + key).view(torch.int16)[skip : skip + per_lora]
            torch.lt(draws, below, out=row)
        return mask.view(like.shape)


def mask_key(seed: int, layer: str, lora: str, part: str = "delta") -> int:
    """The signed 64-bit key of one mask, from what it may depend on."""
    text = "\x1f".join((str(seed), layer, lora, part))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


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
