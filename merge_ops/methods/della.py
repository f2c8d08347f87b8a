"""DELLA: entries are dropped at random, small ones more often, and conflicts are settled as in TIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch

from .consensus import VOTES, SignVote, average_agreeing, elect_signs
from .masks import MaskGenerator
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("della", "DELLA", paper="arXiv:2406.11617", breaks=DROPS_ENTRIES | VOTES)
def della(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA that is kept, chosen at random and scaled up to compensate: 0.5 keeps "
                "half. Lower values give fewer conflicts and more noise; 1 keeps everything."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.5,
    epsilon: Annotated[
        float,
        Param(
            (
                "How much more likely large entries are kept: at 0.15, the largest of a row with 15 points "
                "more than the density, the smallest with 15 points less. 0 is DARE-TIES."
            ),
            min=0,
            max=0.5,
            step=0.01,
        ),
    ] = 0.15,
    majority_sign_method: SignVote = "total",
    generator: MaskGenerator,
    overwrite: bool = False,
    out: Tensor | None = None,
) -> Tensor:  # (..., out, in)
    """Drop random entries, small ones more often, rescale the rest, elect signs and average as TIES does.

    1. rank:    within each row of a LoRA, entries are ranked by magnitude; their chance ``p`` rises with the
       rank from ``density - epsilon`` to ``density + epsilon``
    2. drop:    ``kept_i = deltas[i] * mask_i / p_i``; an entry of ``mask_i`` is 1 with probability p, else 0
    3. elect:   ``sign = +1 if sum_i kept_i >= 0 else -1``; ``frequency`` sums the signs of the ``kept_i``
    4. average: ``merged = sum_i weights[i] * kept_i / count`` over the LoRAs with ``kept_i * sign > 0``,
       of which there are ``count``
    """
    kept = _drop_small_ones(deltas, density, epsilon, generator) if density < 1 else deltas
    signs = elect_signs(kept, majority_sign_method)
    return average_agreeing(kept, signs, weights, overwrite or kept is not deltas, out)


def _drop_small_ones(deltas: Tensor, density: float, epsilon: float, generator: MaskGenerator) -> Tensor:
    """``deltas`` with entries zeroed at random, and the rest divided by the chance that each had."""
    if density <= 0:
        return torch.zeros_like(deltas)
    epsilon = min(epsilon, density, 1 - density)  # so that chances stay between 0 and 1
    columns = deltas.shape[-1]
    steps = torch.arange(columns, dtype=torch.float32, device=deltas.device)
    chances = density + epsilon * (2 * steps / max(columns - 1, 1) - 1 if columns > 1 else 0 * steps)
    kept = torch.empty_like(deltas)
    for delta, out, numbers in zip(deltas.unbind(), kept.unbind(), generator.numbers(deltas), strict=True):
        order = delta.abs().argsort(dim=-1, stable=True)
        chance = torch.empty_like(delta).scatter_(-1, order, chances.expand_as(delta))
        mask = numbers < (chance * generator.numbers_below).round_()
        torch.mul(delta, mask, out=out).div_(chance.clamp_(min=1 / generator.numbers_below))
    return kept
