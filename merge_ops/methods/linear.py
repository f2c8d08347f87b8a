"""Linear: the plain weighted sum (task arithmetic)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("linear", "Linear", paper="arXiv:2212.04089", linear=True)
def linear(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
) -> Tensor:  # (..., out, in)
    """Add the LoRAs, each multiplied by its weight: the same as loading them one after the other.

    ``merged = sum_i weights[i] * deltas[i]``
    """
    return sum_weighted(deltas, weights)


def sum_weighted(deltas: Tensor, weights: Tensor, overwrite: bool = False) -> Tensor:
    """Return the sum over dim 0 of ``weights[i] * deltas[i]``; ``(n, ..., out, in)`` to ``(..., out, in)``.

    With ``overwrite`` the sum takes the place of the first delta.
    """
    first, *others = weights.tolist()
    total: Tensor = deltas[0].mul_(first) if overwrite else deltas[0] * first
    for delta, weight in zip(deltas[1:].unbind(), others, strict=True):
        total.add_(delta, alpha=weight)
    return total
