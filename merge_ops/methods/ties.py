"""TIES: entries on which the LoRAs disagree about the sign are settled by a vote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .consensus import VOTES, SignVote, average_agreeing, elect_signs
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES, keep_largest

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("ties", "TIES", paper="arXiv:2306.01708", breaks=DROPS_ENTRIES | VOTES)
def ties(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is kept, largest entries first: 0.5 keeps half. Lower values "
                "give fewer conflicts and a softer effect; 1 keeps everything."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    thresholds: Tensor | None = None,  # (n, ..., 1, 1)
    overwrite: bool = False,
    out: Tensor | None = None,
) -> Tensor:  # (..., out, in)
    """Keep the largest entries of each LoRA, elect a sign for each entry, and average the LoRAs that have it.

    1. trim:    ``kept_i = deltas[i] * (|deltas[i]| >= threshold_i)``, a share ``density`` of the entries
    2. elect:   ``sign = +1 if sum_i kept_i >= 0 else -1``; ``frequency`` sums the signs of the ``kept_i``
    3. average: ``merged = sum_i weights[i] * kept_i / count`` over the LoRAs with ``kept_i * sign > 0``,
       of which there are ``count``
    """
    kept = keep_largest(deltas, density, thresholds, overwrite)
    signs = elect_signs(kept, majority_sign_method)
    return average_agreeing(kept, signs, weights, overwrite or kept is not deltas, out)
