"""Choosing which entries of a delta survive: the largest ones, or a reproducible random subset."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .masks import MaskGenerator, share_of
from .thresholds import stack_thresholds

if TYPE_CHECKING:
    from torch import Tensor

# the law that every method breaks which drops entries, and why; see ``registry.LAWS``
DROPS_ENTRIES = {"alone_at_every_density": "below density 1, a LoRA loses entries even if it is merged alone"}


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
        thresholds = stack_thresholds(deltas, density)
    if deltas.device.type not in ("cpu", "cuda") or deltas.dtype != torch.float32:
        return deltas * (deltas.abs() >= thresholds.to(deltas.device))
    kept = deltas if overwrite else torch.empty_like(deltas)
    matrices, places = deltas.flatten(0, -3).unbind(), kept.flatten(0, -3).unbind()
    # hardshrink takes one pass and no mask, but drops what equals its limit: hence the next smaller one
    limits = np.nextafter(thresholds.cpu().flatten().numpy(), np.float32(0)).tolist()
    for matrix, limit, out in zip(matrices, limits, places, strict=True):
        torch.ops.aten.hardshrink.out(matrix, limit, out=out)
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
    kept = torch.mul(deltas, generator.masks(deltas, density), out=deltas if overwrite else None)
    # of a power of two the inverse is exact, and a factor is quicker than a divisor
    return kept.mul_(1 / density) if math.frexp(density)[0] == 0.5 else kept.div_(density)
