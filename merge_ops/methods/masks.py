"""Random masks that are the same on every device: bits of a counter-based generator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_WORD = 64  # bits of a word
_BITS = 16  # of a random number
_AT_ONCE = 8  # bits of all numbers that are drawn before the rest is drawn where it still matters
_ROUNDS = (
    (30, _MIX_1 % 2**64),
    (27, _MIX_2 % 2**64),
    (31, None),
)


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
        """``keys``: signed 64-bit integers, one per LoRA, or per LoRA and matrix; ``first``: see ``at``."""
        self.keys = tuple(keys)
        self.first = first

    def at(self, first: int) -> MaskGenerator:
        """Return the generator of the same masks from another flat index on, that of a tile's first entry."""
        return MaskGenerator(self.keys, first)

    def masks(self, like: Tensor, density: float) -> Tensor:
        """Return masks of uint8 in the shape of ``like``: 1 with probability ``density``, else 0.

        ``like`` is ``(n, ..., rows, columns)``, shared out evenly among the keys: one key has all entries of
        a LoRA, or of one of its matrices.
        """
        share = share_of(density)
        if share in (0, 1 << _BITS):
            return torch.full_like(like, min(share, 1), dtype=torch.uint8)
        below = _below_on_cpu if like.device.type == "cpu" else _below
        entries, first, skip, words = self._place(like)
        bits = below(self.keys, share, first, words, like.device)
        return bits[:, skip : skip + entries].view(like.shape)

    def numbers(self, like: Tensor) -> Tensor:
        """Return the numbers below ``numbers_below`` that masks compare with a density, as int32."""
        entries, first, skip, words = self._place(like)
        numbers = torch.stack([_numbers(key, first, words, like.device) for key in self.keys])
        return numbers[:, skip : skip + entries].view(like.shape)

    def _place(self, like: Tensor) -> tuple[int, int, int, int]:
        """The entries of a key, the first group of words, the bits before ``first``, and the words."""
        entries = like.numel() // len(self.keys)
        first, skip = divmod(self.first, _WORD)
        return entries, first, skip, -(-(skip + entries) // _WORD)


def share_of(density: float) -> int:
    """Return how many of the 65536 numbers of a mask are kept."""
    return round(density * (1 << _BITS))


def mask_key(seed: int, layer: str, lora: str, part: str = "delta") -> int:
    """Return the signed 64-bit key of one mask, from everything that the mask may depend on."""
    text = "\x1f".join((str(seed), layer, lora, part))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _steps(share: int) -> list[tuple[int, bool]]:
    """The bits of ``share``, down to the lowest one that is set: place from the top, and value."""
    lowest = (share & -share).bit_length() - 1
    return [(_BITS - 1 - bit, bool(share >> bit & 1)) for bit in reversed(range(lowest, _BITS))]


def _below(keys: Sequence[int], share: int, first: int, words: int, device: torch.device) -> Tensor:
    """Bits ``(n, 64 * words)`` of uint8: which 16-bit numbers, from group ``first`` on, are below ``share``.

    All words are drawn at once: where launches are what costs, their number does not depend on the share.
    """
    steps = _steps(share)
    groups = torch.arange(first, first + words, device=device).mul_(_signed(_BITS * _GOLDEN))
    starts = [[_signed((place + 1) * _GOLDEN + key) for place, _ in steps] for key in keys]
    clear = _mix(torch.tensor(starts, device=device)[..., None] + groups).bitwise_not_()  # (n, steps, words)
    below = torch.zeros_like(clear[:, 0])
    for step in reversed(range(len(steps))):
        below = below.bitwise_or_(clear[:, step]) if steps[step][1] else below.bitwise_and_(clear[:, step])
    places = torch.arange(8, dtype=torch.uint8, device=device)
    return (below.view(torch.uint8)[..., None] >> places).bitwise_and_(1).flatten(1)


def _below_on_cpu(keys: Sequence[int], share: int, first: int, words: int, _device: torch.device) -> Tensor:
    """``_below`` in numpy, where unsigned shifts need no masks and bits are unpacked quickly."""
    groups = np.arange(first, first + words, dtype=np.uint64) * np.uint64(_BITS * _GOLDEN % 2**64)
    starts = (np.array([key % 2**64 for key in keys], np.uint64)[:, None] + groups).ravel()
    below = _less(starts, _steps(share)).astype("<u8", copy=False)
    bits = np.unpackbits(below.view(np.uint8), bitorder="little")
    return torch.from_numpy(bits).view(len(keys), -1)


def _less(starts: NDArray[np.uint64], steps: list[tuple[int, bool]]) -> NDArray[np.uint64]:
    """The bits of ``_below`` for the numbers that the words from ``starts`` on make, as far as ``steps`` go.

    A number is settled by its highest bit that is not that of the share. Few are open after some bits, and
    of those that follow, only the words with such a number are drawn.
    """
    below, same = np.zeros_like(starts), np.full_like(starts, 2**64 - 1)
    now, later = steps[:_AT_ONCE], steps[_AT_ONCE:]
    counters = np.array([(place + 1) * _GOLDEN % 2**64 for place, _ in now], np.uint64)
    for (_, is_set), clear in zip(now, _mixed(starts + counters[:, None]), strict=True):
        np.invert(clear, out=clear)
        if is_set:
            clear &= same
            below |= clear
            same ^= clear
        else:
            same &= clear
    if later:
        left = np.flatnonzero(same)
        below[left] |= same[left] & _less(starts[left], later)
    return below


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """``_mix`` in numpy."""
    shifted = np.empty_like(z)
    for shift, factor in _ROUNDS:
        np.right_shift(z, np.uint64(shift), out=shifted)
        z ^= shifted
        if factor is not None:
            z *= np.uint64(factor)
    return z


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
