"""Breadcrumbs: the small entries of each LoRA are dropped, and its few largest ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .linear import sum_weighted
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES, keep_largest
from .thresholds import shares_above, stack_thresholds

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("breadcrumbs", "Breadcrumbs", paper="arXiv:2312.06795", breaks=DROPS_ENTRIES)
def breadcrumbs(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is kept: 0.9 keeps 90 %, without the outliers and without the "
                "smallest entries. 1 keeps everything, which is linear."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.9,
    outliers: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is dropped because its entries are the largest: 0.01 drops 1 %. "
                "0 drops only small entries."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.01,
    thresholds: Tensor | None = None,  # (n, ..., 1, 1)
    ceilings: Tensor | None = None,  # (n, ..., 1, 1)
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Drop the largest and the smallest entries of each LoRA, and add what is left.

    1. trim: ``kept_i = deltas[i] * (threshold_i <= |deltas[i]| < ceiling_i)``, a share ``density`` of the
       entries; a share ``outliers`` lies above the ceiling, or less where the density leaves no room for it
    2. add:  ``merged = sum_i weights[i] * kept_i``
    """
    lower, upper = shares_above(density, outliers)
    if upper > 0:
        if ceilings is None:
            ceilings = stack_thresholds(deltas, upper)
        below = deltas.abs() < ceilings.to(deltas.device)
        kept = keep_largest(deltas, lower, thresholds, overwrite)
        kept, overwrite = kept * below, True
    else:
        kept = keep_largest(deltas, density, thresholds, overwrite)
        overwrite = overwrite or kept is not deltas
    return sum_weighted(kept, weights, overwrite)
