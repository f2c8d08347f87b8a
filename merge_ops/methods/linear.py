"""The plain sum, and the sum of what is largest in each LoRA."""

from typing import Annotated

from torch import Tensor

from .registry import Param, merge_method
from .sparsify import keep_largest


def weighted_sum(deltas: Tensor, weights: Tensor, overwrite: bool = False) -> Tensor:
    """Sum over dim 0 of ``weights[i] * deltas[i]``; ``(n, ..., out, in)`` to ``(..., out, in)``.

    With ``overwrite`` it is made in the place of the first delta.
    """
    first, *others = weights.tolist()
    total: Tensor = deltas[0].mul_(first) if overwrite else deltas[0] * first
    for delta, weight in zip(deltas[1:].unbind(), others, strict=True):
        total.add_(delta, alpha=weight)
    return total


@merge_method("linear", "Linear", paper="arXiv:2212.04089", linear=True)
def linear(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
) -> Tensor:  # (..., out, in)
    """Add the LoRAs, each times its weight: the same as loading them one after the other."""
    return weighted_sum(deltas, weights)


@merge_method("magnitude_prune", "Magnitude prune", paper="arXiv:2306.01708")
def magnitude_prune(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            "How much of each LoRA is kept: the largest entries, 0.7 is 70 % of them. 1 keeps all, which is "
            "linear.",
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.7,
    thresholds: Tensor | None = None,  # (n, ..., 1, 1)
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Keep the largest entries of each LoRA, drop the rest, and add what is left."""
    kept = keep_largest(deltas, density, thresholds, overwrite)
    return weighted_sum(kept, weights, overwrite or kept is not deltas)
