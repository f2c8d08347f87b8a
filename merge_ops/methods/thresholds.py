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

_WHOLE = 1 << 18  # a delta of up to this many entries is formed as a whole
_SAMPLED = 256  # rows and columns of the sample that says where to look
_MARGINS = (0.02, 0.08)  # on each side of the rank looked for, as a share of the entries


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


def shares_above(density: float, outliers: float) -> tuple[float, float]:
    """Return the shares of the entries above the lower and above the upper cut of a trimming.

    Between the two lies ``density``; a share ``outliers`` is above both, if the density leaves room for it.
    """
    above = min(outliers, round(1 - density, 9))  # rounded, as 1 - 0.9 is a little less than 0.1
    return round(density + above, 9), above


def product_thresholds(factors: list[tuple[Tensor, Tensor]], density: float, height: int) -> list[float]:
    """Return ``magnitude_thresholds`` of the products ``up @ down``; all factors are on one device.

    On the CPU a product is formed ``height`` rows at a time, elsewhere as a whole.
    """
    if not factors or factors[0][0].device.type == "cpu":
        return [_product_threshold(up, down, density, height) for up, down in factors]
    return magnitude_thresholds((up @ down for up, down in factors), density)


def bounds(values: Tensor, dropped: int) -> Tensor:
    """Return the largest of the ``dropped`` smallest magnitudes and the smallest of the others; ``(2,)``."""
    magnitudes = values.detach().abs().flatten()
    high = magnitudes.kthvalue(dropped + 1).values
    at_most = magnitudes.kthvalue(dropped).values
    return torch.stack((at_most, high))


def _product_threshold(up: Tensor, down: Tensor, density: float, height: int) -> float:
    """A sample says between which two magnitudes the threshold lies; one pass then counts what is below.

    The pass keeps what lies between the two, and the threshold is selected from that. If the sample was
    wrong, the search is repeated with a wider margin, and finally over all entries.
    """
    rows, columns = up.shape[0], down.shape[1]
    dropped = _dropped(rows * columns, density)
    if rows * columns <= _WHOLE or dropped in (0, rows * columns):
        return magnitude_thresholds([up @ down], density)[0]
    sample = up[_spread(rows)] @ down[:, _spread(columns)]
    magnitudes = sample.abs_().flatten().numpy()
    for margin in _MARGINS:
        shares = (dropped / (rows * columns) - margin, dropped / (rows * columns) + margin)
        places = [int(min(max(share, 0), 1) * (len(magnitudes) - 1)) for share in shares]
        low, high = (float(m) for m in np.partition(magnitudes, places)[places])
        below, between = _sift(up, down, low, high, height)
        if below < dropped < below + len(between):
            return _between(between, dropped - below)
    return magnitude_thresholds([up @ down], density)[0]


def product_tiles(up: Tensor, down: Tensor, height: int) -> Iterator[Tensor]:
    """Yield ``up @ down``, ``height`` rows at a time, in one buffer that is reused for each tile."""
    buffer = torch.empty((height, down.shape[1]), device=up.device)
    for start in range(0, up.shape[0], height):
        yield torch.mm(up[start : start + height], down, out=buffer[: up.shape[0] - start])


def _sift(up: Tensor, down: Tensor, low: float, high: float, height: int) -> tuple[int, NDArray[np.float32]]:
    """The number of magnitudes below ``low``, and the magnitudes in ``[low, high)``."""
    below, between = 0, []
    for tile in product_tiles(up, down, height):
        magnitudes = tile.abs_().numpy().ravel()
        chosen = magnitudes < low
        below += int(np.count_nonzero(chosen))
        np.not_equal(chosen, magnitudes < high, out=chosen)
        between.append(magnitudes[np.flatnonzero(chosen)])
    return below, np.concatenate(between)


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


def _spread(size: int) -> Tensor:
    return torch.linspace(0, size - 1, min(size, _SAMPLED)).long()
