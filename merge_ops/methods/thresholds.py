"""The magnitude that separates the largest entries of a delta from the rest: exact, by selection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_GROUPS = 20  # the sample that says where to look has one in so many entries
_DEVIATIONS = 4  # of the sample, on each side of the rank looked for


def magnitude_thresholds(matrices: Iterable[Tensor], density: float) -> list[float]:
    """Return the magnitudes that separate the ``int(density * numel)`` largest entries from the rest.

    One per matrix; inf if none is kept. A threshold lies midway between the smallest entry kept and the
    largest one dropped, so that a delta computed again in other tiles or on another device, with other last
    bits, is cut at the same place; among ties it is their own magnitude. The matrices are float32, all of one
    size, of any shape, and are left unchanged.

    On the CPU the bits of the magnitudes are selected as integers, which have the same order as the values.
    Other devices are synchronised only once.
    """
    thresholds, waiting = [], []
    for values in matrices:
        dropped = _dropped(values.numel(), density)
        if dropped in (0, values.numel()):
            thresholds.append(math.inf if dropped else 0.0)
        elif values.device.type == "cpu":
            thresholds.append(_between(values.detach().abs().flatten().numpy(), dropped))
        else:
            waiting.append(bounds(values, dropped))
    return thresholds + [
        _middle(low, high) for low, high in (torch.stack(waiting).tolist() if waiting else ())
    ]


def stack_thresholds(values: Tensor, density: float) -> Tensor:
    """Return ``magnitude_thresholds`` of the matrices of ``values (..., rows, columns)``; ``(..., 1, 1)``."""
    matrices = values.detach().flatten(0, -3)
    dropped = _dropped(matrices[0].numel(), density)
    if values.device.type != "cpu" or dropped in (0, matrices[0].numel()):
        limits = magnitude_thresholds(matrices.unbind(), density)
    else:
        bits = matrices.abs().flatten(1).numpy().view(np.int32)
        bits.partition(dropped, axis=1)
        pairs = zip(
            bits[:, :dropped].max(axis=1).view(np.float32), bits[:, dropped].view(np.float32), strict=True
        )
        limits = [_middle(float(low), float(high)) for low, high in pairs]
    return torch.tensor(limits).view(*values.shape[:-2], 1, 1)


def shares_above(density: float, outliers: float) -> tuple[float, float]:
    """Return the shares of the entries above the lower and above the upper cut of a trimming.

    Between the two lies ``density``; a share ``outliers`` is above both, if the density leaves room for it.
    """
    above = min(outliers, round(1 - density, 9))  # rounded, as 1 - 0.9 is a little less than 0.1
    return round(density + above, 9), above


def product_thresholds(
    factors: list[tuple[Tensor, Tensor]], density: float, height: int, room: Tensor
) -> list[float]:
    """Return ``magnitude_thresholds`` of the products ``up @ down``; all factors are on one device.

    On the CPU a product is formed in ``room``, float32 of any shape: as a whole if it fits in, else
    ``height`` rows at a time. Elsewhere it is formed as a whole, in memory of its own, and what is found is
    read once for all products, which is when the host waits for the device.
    """
    if not factors or factors[0][0].device.type == "cpu":
        return [_product_threshold(up, down, density, height, room.flatten()) for up, down in factors]
    dropped = [_dropped(up.shape[0] * down.shape[1], density) for up, down in factors]
    found = torch.stack([bracketed(*pair, count) for pair, count in zip(factors, dropped, strict=True)])
    return [
        _middle(low, high) if is_sure else magnitude_thresholds([up @ down], density)[0]
        for (low, high, is_sure), (up, down) in zip(found.tolist(), factors, strict=True)
    ]


def bounds(values: Tensor, dropped: int) -> Tensor:
    """Return the largest of the ``dropped`` smallest magnitudes and the smallest of the others; ``(2,)``."""
    return values.detach().abs().flatten().sort().values[dropped - 1 : dropped + 1]


def bracketed(up: Tensor, down: Tensor, dropped: int) -> Tensor:
    """Return ``bounds`` of ``up @ down`` and 1, or anything and 0 where a sample misled; float32 ``(3,)``.

    What lies between two magnitudes of the sample is moved together and sorted. No step waits for a result:
    the sizes of all tensors are known beforehand.
    """
    magnitudes = (up @ down).abs_().flatten()
    sample = _sample(up, down).sort().values
    share, margin = dropped / len(magnitudes), _margin(dropped / len(magnitudes), len(sample))
    sample = torch.nn.functional.pad(sample[1:-1], (1, 1))  # the ends are open
    sample[-1] = math.inf
    low, high = (sample[place] for place in _places(share - margin, share + margin, len(sample)))
    between = (magnitudes >= low) & (magnitudes < high)
    most = min(int(3 * margin * len(magnitudes)) + 1024, len(magnitudes))
    order = between.cumsum(0)
    target = torch.where(between, order - 1, most).clamp_(max=most)
    chosen = torch.full((most + 1,), math.inf, device=up.device).scatter_(0, target, magnitudes)[:most]
    place = dropped - (magnitudes < low).sum()
    pair = chosen.sort().values[torch.stack((place - 1, place)).clamp_(0, most - 1)]
    is_sure = (place >= 1) & (place < order[-1]) & (order[-1] <= most)
    return torch.cat((pair, is_sure[None]))


def _product_threshold(up: Tensor, down: Tensor, density: float, height: int, room: Tensor) -> float:
    """A sample says between which two magnitudes the threshold lies; one pass then counts what is below.

    The pass keeps what lies between the two, and the threshold is selected from that. If the sample was
    wrong, the search is repeated with a wider margin, and finally over all entries.
    """
    rows, columns = up.shape[0], down.shape[1]
    dropped = _dropped(rows * columns, density)
    if dropped in (0, rows * columns):
        return math.inf if dropped else 0.0
    if rows * columns <= room.numel():
        (whole,) = product_tiles(up, down, rows, room)
        return _between(whole.abs_().numpy().ravel(), dropped)
    sample, share = _sample(up, down).numpy(), dropped / (rows * columns)
    for wider in (1, 5):
        margin = wider * _margin(share, len(sample))
        low, high = _quantiles(sample, share - margin, share + margin)
        below, between = _sift(product_tiles(up, down, height, room), low, high)
        if below < dropped < below + len(between):
            return _between(between, dropped - below)
    return magnitude_thresholds([up @ down], density)[0]


def product_tiles(up: Tensor, down: Tensor, height: int, room: Tensor) -> Iterator[Tensor]:
    """Yield ``up @ down``, ``height`` rows at a time, each tile in the same memory, that of ``room``."""
    columns = down.shape[1]
    for start in range(0, up.shape[0], height):
        part = up[start : start + height]
        yield torch.mm(part, down, out=room[: len(part) * columns].view(len(part), columns))


def _sift(tiles: Iterable[Tensor], low: float, high: float) -> tuple[int, NDArray[np.float32]]:
    """The number of magnitudes below ``low``, and the magnitudes in ``[low, high)``; uses the tiles up."""
    below, between = 0, []
    is_below = is_low = np.empty(0, bool)
    for tile in tiles:
        magnitudes = tile.abs_().numpy().ravel()
        if len(is_low) != len(magnitudes):
            is_below, is_low = (np.empty(len(magnitudes), bool) for _ in range(2))
        np.less(magnitudes, low, out=is_below)
        below += int(np.count_nonzero(is_below))
        np.less(magnitudes, high, out=is_low)
        np.not_equal(is_low, is_below, out=is_low)
        between.append(magnitudes[np.flatnonzero(is_low)])
    return below, np.concatenate(between)


def _sample(up: Tensor, down: Tensor) -> Tensor:
    """Some magnitudes of ``up @ down``, in which every row and every column has the same share.

    Rows and columns are dealt out to ``_GROUPS`` groups; what is taken is where both are of one group.
    """
    (rows, rank), columns = up.shape, down.shape[1]
    groups = min(_GROUPS, rows, columns)
    height, width = rows // groups, columns // groups
    ups = up[: height * groups].reshape(height, groups, rank).transpose(0, 1)
    downs = down[:, : width * groups].reshape(rank, width, groups).permute(2, 0, 1)
    return (ups @ downs).abs_().flatten()


def _margin(share: float, sampled: int) -> float:
    """How far from ``share`` of a sample to look on each side, as a share."""
    return _DEVIATIONS * math.sqrt(max(share * (1 - share) / sampled, 1 / sampled**2))


def _places(first: float, second: float, count: int) -> tuple[int, int]:
    """The places of two shares among ``count`` values in order."""
    low, high = (int(min(max(share, 0), 1) * (count - 1)) for share in (first, second))
    return low, high


def _quantiles(magnitudes: NDArray[np.float32], first: float, second: float) -> tuple[float, float]:
    """The magnitudes that the shares ``first`` and ``second`` of all are below; reorders the array.

    The ends are open: shares below all and above all give 0 and infinity.
    """
    bits, (low, high) = magnitudes.view(np.int32), _places(first, second, len(magnitudes))
    bits.partition(low)  # one place at a time: for that, processors have fast code
    at_low = float(magnitudes[low]) if low else 0.0
    bits[low:].partition(high - low)
    return at_low, float(magnitudes[high]) if high < len(magnitudes) - 1 else math.inf


def _between(magnitudes: NDArray[np.float32], dropped: int) -> float:
    """The threshold above the ``dropped`` smallest magnitudes; reorders the array."""
    bits = magnitudes.view(np.int32)
    bits.partition(dropped)
    return _middle(float(bits[:dropped].max().view(np.float32)), float(bits[dropped].view(np.float32)))


def _middle(low: float, high: float) -> float:
    middle = float(np.float32(low + (high - low) / 2))
    return middle if middle > low else high


def _dropped(entries: int, density: float) -> int:
    return entries - min(max(int(density * entries), 0), entries)
