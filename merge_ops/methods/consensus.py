"""TIES: entries on which the LoRAs disagree about the sign are settled by a vote."""

from typing import Annotated, Literal

from torch import Tensor

from ..registry import Param, merge_method
from ..sparsify import MaskGenerator, drop_random, keep_largest
from .linear import weighted_sum

SignVote = Annotated[
    Literal["total", "frequency"],
    Param(
        "How the sign of each entry is elected: 'total' by the summed values, 'frequency' by the number of "
        "LoRAs on each side, which often does better.",
        advanced=True,
    ),
]


def elect_and_average(deltas: Tensor, weights: Tensor, majority_sign_method: str) -> Tensor:
    """Elect a sign per entry, then average the LoRAs that have it (TIES-Merging, steps 2 and 3).

    The conventions are those of ``peft.utils.merge_utils``: the vote is taken before the weights, a tie
    counts as plus, and the divisor is the number of LoRAs that agree, so weights are absolute.
    """
    votes = deltas.sign() if majority_sign_method == "frequency" else deltas
    elected = (votes.sum(dim=0) >= 0).to(deltas.dtype).mul_(2).sub_(1)  # (..., out, in), +1 or -1
    agree = (deltas * elected > 0).to(deltas.dtype)  # (n, ..., out, in)
    return weighted_sum(agree * deltas, weights).div_(agree.sum(dim=0).clamp_(min=1))


@merge_method("ties", "TIES", paper="arXiv:2306.01708")
def ties(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param("Fraction of the entries of each LoRA that is kept, largest first.", min=0, max=1, step=0.01),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    thresholds: Tensor | None = None,  # (n, ..., 1, 1)
) -> Tensor:  # (..., out, in)
    """Keep the largest entries of each LoRA, elect a sign per entry, average the LoRAs that have it."""
    return elect_and_average(keep_largest(deltas, density, thresholds), weights, majority_sign_method)


@merge_method("dare_ties", "DARE-TIES", paper="arXiv:2311.03099")
def dare_ties(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            "Fraction of the entries of each LoRA that is kept, chosen at random.", min=0, max=1, step=0.01
        ),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    generator: MaskGenerator,
) -> Tensor:  # (..., out, in)
    """Drop entries of each LoRA at random and rescale the rest, then elect signs and average as TIES does."""
    return elect_and_average(drop_random(deltas, density, generator), weights, majority_sign_method)
