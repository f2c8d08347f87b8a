"""DARE: entries are dropped at random, and the rest is rescaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .linear import sum_weighted
from .masks import MaskGenerator
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES, drop_random

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("dare_linear", "DARE", paper="arXiv:2311.03099", breaks=DROPS_ENTRIES)
def dare_linear(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is kept, chosen at random and scaled up to compensate: 0.7 "
                "keeps 70 %. Lower values give fewer conflicts and more noise; 1 keeps everything."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.7,
    generator: MaskGenerator,
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Drop random entries of each LoRA, divide the rest by the density, and add the LoRAs.

    1. drop: ``kept_i = deltas[i] * mask_i / density``; an entry of ``mask_i`` is 1 with probability
       ``density``, else 0, so that ``kept_i`` is ``deltas[i]`` on average
    2. add:  ``merged = sum_i weights[i] * kept_i``
    """
    kept = drop_random(deltas, density, generator, overwrite)
    return sum_weighted(kept, weights, overwrite or kept is not deltas)
