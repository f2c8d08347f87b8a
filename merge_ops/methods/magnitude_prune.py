"""Magnitude prune: the sum of the largest entries of each LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .linear import sum_weighted
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES, keep_largest

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("magnitude_prune", "Magnitude prune", paper="arXiv:2306.01708", breaks=DROPS_ENTRIES)
def magnitude_prune(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is kept, largest entries first: 0.7 keeps 70 %. 1 keeps "
                "everything, which is linear."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.7,
    thresholds: Tensor | None = None,  # (n, ..., 1, 1)
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Keep the largest entries of each LoRA, drop the rest, and add what is left.

    1. trim: ``kept_i = deltas[i] * (|deltas[i]| >= threshold_i)``, a share ``density`` of the entries
    2. add:  ``merged = sum_i weights[i] * kept_i``
    """
    kept = keep_largest(deltas, density, thresholds, overwrite)
    return sum_weighted(kept, weights, overwrite or kept is not deltas)
