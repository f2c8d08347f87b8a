"""DARE-TIES: entries are dropped at random as in DARE, and conflicts of sign are settled as in TIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .consensus import VOTES, SignVote, average_agreeing, elect_signs
from .masks import MaskGenerator
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES, drop_random

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("dare_ties", "DARE-TIES", paper="arXiv:2311.03099", breaks=DROPS_ENTRIES | VOTES)
def dare_ties(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is kept, chosen at random and scaled up to compensate: 0.5 "
                "keeps half. Lower values give fewer conflicts and more noise; 1 keeps everything."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    generator: MaskGenerator,
    overwrite: bool = False,
    out: Tensor | None = None,
) -> Tensor:  # (..., out, in)
    """Drop random entries of each LoRA, rescale the rest, then elect signs and average as TIES does.

    1. drop:    ``kept_i = deltas[i] * mask_i / density``; an entry of ``mask_i`` is 1 with probability
       ``density``, else 0
    2. elect:   ``sign = +1 if sum_i kept_i >= 0 else -1``; ``frequency`` sums the signs of the ``kept_i``
    3. average: ``merged = sum_i weights[i] * kept_i / count`` over the LoRAs with ``kept_i * sign > 0``,
       of which there are ``count``
    """
    kept = drop_random(deltas, density, generator, overwrite)
    signs = elect_signs(kept, majority_sign_method)
    return average_agreeing(kept, signs, weights, overwrite or kept is not deltas, out)
