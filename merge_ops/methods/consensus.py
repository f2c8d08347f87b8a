"""TIES: entries on which the LoRAs disagree about the sign are settled by a vote."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from .registry import Param, merge_method
from .sparsify import MaskGenerator, drop_random, keep_largest

SignVote = Annotated[
    Literal["total", "frequency"],
    Param(
        "Where LoRAs pull an entry up and down, one side wins. 'total': the side with the larger sum. "
        "'frequency': the side with more LoRAs, which often does better.",
        advanced=True,
    ),
]


def elect_and_average(
    deltas: Tensor, weights: Tensor, majority_sign_method: str, overwrite: bool = False
) -> Tensor:
    """Elect a sign per entry, then average the LoRAs that have it (TIES-Merging, steps 2 and 3).

    The conventions are those of ``peft.utils.merge_utils``: the vote is taken before the weights, a tie
    counts as plus, and the divisor is the number of LoRAs that agree, so weights are absolute.
    """
    by_sign = majority_sign_method == "frequency"
    elected = deltas[0].sign() if by_sign else deltas[0].clone()
    for delta in deltas[1:].unbind():
        elected.add_(delta.sign() if by_sign else delta)
    elected.ge_(0).mul_(2).sub_(1)  # (..., out, in), +1 or -1
    scratch = None if overwrite else torch.empty_like(elected)
    total = count = None
    for delta, weight in zip(deltas.unbind(), weights.tolist(), strict=True):
        agreeing = torch.mul(delta, elected, out=delta if scratch is None else scratch)
        agreeing.relu_()  # the magnitude where the sign is the elected one
        if total is None or count is None:
            total, count = agreeing * weight, agreeing.sign()
        else:
            total.add_(agreeing, alpha=weight)
            count.add_(agreeing.sign_())
    assert total is not None and count is not None
    average: Tensor = total.mul_(elected).div_(count.clamp_min_(1))
    return average


@merge_method("ties", "TIES", paper="arXiv:2306.01708")
def ties(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            "How much of each LoRA is kept: the largest entries, 0.5 is half of them. Lower means fewer "
            "conflicts and a softer effect; 1 keeps all.",
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    thresholds: Tensor | None = None,  # (n, ..., 1, 1)
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Keep the largest entries of each LoRA, elect a sign per entry, average the LoRAs that have it."""
    kept = keep_largest(deltas, density, thresholds, overwrite)
    return elect_and_average(kept, weights, majority_sign_method, overwrite or kept is not deltas)


@merge_method("dare_ties", "DARE-TIES", paper="arXiv:2311.03099")
def dare_ties(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            "How much of each LoRA is kept: entries chosen at random, 0.5 is half of them; they are scaled "
            "up to make up for it. Lower means fewer conflicts, but noise; 1 keeps all.",
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    generator: MaskGenerator,
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Drop entries of each LoRA at random and rescale the rest, then elect signs and average as TIES does."""
    kept = drop_random(deltas, density, generator, overwrite)
    return elect_and_average(kept, weights, majority_sign_method, overwrite or kept is not deltas)
