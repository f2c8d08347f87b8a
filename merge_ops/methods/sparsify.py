"""Choosing which entries of a delta survive: the largest ones, or a reproducible random subset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .thresholds import magnitude_thresholds

if TYPE_CHECKING:
    from torch import Tensor

# the law that every method breaks which drops entries, and why; see ``registry.LAWS``
DROPS_ENTRIES = {"alone_at_every_density": "below density 1, a LoRA loses entries even if it is merged alone"}

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_WORD = 64  # bits of a word
_BITS = 16  # of a random number
_ROUNDS = (
    (30, _MIX_1 % 2**64),
    (27, _MIX_2 % 2**64),
    (31, None),
)


def keep_largest(
    deltas: Tensor, density: float, thresholds: Tensor | None = None, overwrite: bool = False
) -> Tensor:
    """Zero all but the largest entries of each matrix (TIES-Merging, step 1).

    ``deltas`` is ``(n, ..., out, in)``. ``thresholds`` ``(n, ..., 1, 1)`` are computed if they are not given.
    Entries tied with the smallest one that is kept are kept too. With ``overwrite`` the result takes the
    place of the deltas.
    """
    if density >= 1:
        return deltas
    if thresholds is None:
        limits = magnitude_thresholds(deltas.flatten(0, -3).unbind(), density)
        thresholds = torch.tensor(limits).view(*deltas.shape[:-2], 1, 1)
    if deltas.device.type != "cpu" or deltas.dtype != torch.float32:
        return deltas * (deltas.abs() >= thresholds.to(deltas.device))
    kept = deltas if overwrite else torch.empty_like(deltas)
    matrices, places = deltas.flatten(0, -3).unbind(), kept.flatten(0, -3).unbind()
    for matrix, limit, out in zip(matrices, thresholds.flatten().tolist(), places, strict=True):
        # hardshrink takes one pass and no mask, but drops what equals its limit: hence the next smaller one
        below = float(np.nextafter(np.float32(limit), np.float32(0)))
        torch.ops.aten.hardshrink.out(matrix, below, out=out)
    return kept


def drop_random(deltas: Tensor, density: float, generator: MaskGenerator, overwrite: bool = False) -> Tensor:
    """Zero entries at random and divide the rest by ``density`` (DARE); density 0 gives zero, not NaN.

    So does a density at which masks keep nothing, which is one of less than 1 in 131072. ``deltas`` is
    ``(n, ..., out, in)``. With ``overwrite`` the result takes the place of the deltas.
    """
    if density >= 1:
        return deltas
    if share_of(density) == 0:
        return torch.zeros_like(deltas)
    kept = deltas if overwrite else torch.empty_like(deltas)
    masks = generator.masks(deltas, density)
    for delta, mask, out in zip(deltas.unbind(), masks, kept.unbind(), strict=True):
        torch.mul(delta, mask, out=out).div_(density)
    return kept


class MaskGenerator:
    """Random masks that depend on a key and on the position of an entry, and on nothing else.

    Entry ``i`` is kept if a 16-bit number is below the density's share of 65536. Its bits, the highest first,
    are bit ``i % 64`` of words ``16 * (i // 64)`` and following of splitmix64 (Steele, Lea, Flood, OOPSLA
    2014), in integer arithmetic that wraps the same way everywhere. So the masks are the same on every
    device, for every number of threads and every size of tile, and no global random state is read or written.
    Low bits that cannot matter are not drawn: a density of one half needs one word for 64 entries.
    """

    numbers_below = 1 << _BITS

    def __init__(self, keys: Sequence[int], first: int = 0) -> None:
        """``keys``: one signed 64-bit integer per LoRA. ``first``: flat index of a tile's first entry."""
        self.keys = tuple(keys)
        self.first = first

    def masks(self, like: Tensor, density: float) -> Iterator[Tensor]:
        """Yield an integer mask for each LoRA: 1 with probability ``density``, else 0.

        ``like`` is ``(n, ..., rows, columns)``, a mask has the shape ``like.shape[1:]``.
        """
        share, shape = share_of(density), like.shape[1:]
        first, skip = divmod(self.first, _WORD)
        words = -(-(skip + shape.numel()) // _WORD)
        for key in self.keys:
            if share in (0, 1 << _BITS):
                yield torch.full(shape, min(share, 1), dtype=torch.uint8, device=like.device)
                continue
            below = _below_on_cpu if like.device.type == "cpu" else _below
            yield below(key, share, first, words, like.device)[skip : skip + shape.numel()].view(shape)

    def numbers(self, like: Tensor) -> Iterator[Tensor]:
        """Yield for each LoRA the numbers below ``numbers_below`` that masks compare with a density.

        ``like`` is ``(n, ..., rows, columns)``, the numbers are int32 of the shape ``like.shape[1:]``.
        """
        shape = like.shape[1:]
        first, skip = divmod(self.first, _WORD)
        words = -(-(skip + shape.numel()) // _WORD)
        for key in self.keys:
            yield _numbers(key, first, words, like.device)[skip : skip + shape.numel()].view(shape)


def share_of(density: float) -> int:
    """Return how many of the 65536 numbers of a mask are kept."""
    return round(density * (1 << _BITS))


def mask_key(seed: int, layer: str, lora: str, part: str = "delta") -> int:
    """Return the signed 64-bit key of one mask, from everything that the mask may depend on."""
    text = "\x1f".join((str(seed), layer, lora, part))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _steps(share: int) -> Iterator[tuple[int, bool]]:
    """The bits of ``share``, from the lowest one that is set upwards: place from the top, and value."""
    lowest = (share & -share).bit_length() - 1
    for bit in range(lowest, _BITS):
        yield _BITS - 1 - bit, bool(share >> bit & 1)


def _below(key: int, share: int, first: int, words: int, device: torch.device) -> Tensor:
    """Bits ``(64 * words,)``: which 16-bit numbers, from group ``first`` on, are below ``share``."""
    groups = torch.arange(first, first + words, device=device).mul_(_signed(_BITS * _GOLDEN))
    below = torch.zeros_like(groups)
    for place, is_set in _steps(share):
        clear = _mix(groups + _signed((place + 1) * _GOLDEN + key)).bitwise_not_()
        below = below.bitwise_or_(clear) if is_set else below.bitwise_and_(clear)
    return (below[:, None] >> torch.arange(_WORD, device=device)).bitwise_and_(1).flatten()


def _below_on_cpu(key: int, share: int, first: int, words: int, _device: torch.device) -> Tensor:
    """``_below`` in numpy, where unsigned shifts need no masks and bits are unpacked quickly."""
    groups = np.arange(first, first + words, dtype=np.uint64) * np.uint64(_BITS * _GOLDEN % 2**64)
    below, z, shifted = np.zeros_like(groups), np.empty_like(groups), np.empty_like(groups)
    for place, is_set in _steps(share):
        np.add(groups, np.uint64(((place + 1) * _GOLDEN + key) % 2**64), out=z)
        for shift, factor in _ROUNDS:
            np.right_shift(z, shift, out=shifted)
            np.bitwise_xor(z, shifted, out=z)
            if factor is not None:
                np.multiply(z, factor, out=z)
        np.invert(z, out=z)
        (np.bitwise_or if is_set else np.bitwise_and)(below, z, out=below)
    return torch.from_numpy(np.unpackbits(below.astype("<u8", copy=False).view(np.uint8), bitorder="little"))


def _numbers(key: int, first: int, words: int, device: torch.device) -> Tensor:
    """The 16-bit numbers ``(64 * words,)`` of the groups from ``first`` on, in int32."""
    groups = torch.arange(first, first + words, device=device).mul_(_signed(_BITS * _GOLDEN))
    places = torch.arange(_WORD, device=device)
    numbers = torch.zeros((words, _WORD), dtype=torch.int32, device=device)
    for place in range(_BITS):
        bits = _mix(groups + _signed((place + 1) * _GOLDEN + key))[:, None] >> places
        numbers.bitwise_left_shift_(1).bitwise_or_(bits.bitwise_and_(1).to(torch.int32))
    return numbers.flatten()


def _signed(value: int) -> int:
    """Wrapped to 64 bits with a sign, as torch's integers are."""
    return (value + 2**63) % 2**64 - 2**63


def hash_words(key: int, count: int) -> Tensor:
    """Return ``count`` 64-bit words of the stream of ``key``, as signed integers on the CPU."""
    return _mix(torch.arange(1, count + 1).mul_(_GOLDEN).add_(key))


def _mix(z: Tensor) -> Tensor:
    """The output function of splitmix64, in place; masks undo the sign that int64 shifts keep."""
    z ^= (z >> 30) & 0x3FFFFFFFF
    z *= _MIX_1
    z ^= (z >> 27) & 0x1FFFFFFFFF
    z *= _MIX_2
    z ^= (z >> 31) & 0x1FFFFFFFF
    return z
