"""Mean: the sum divided by the number of LoRAs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bases import spread
from .registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("mean", "Mean", paper="arXiv:2203.05482", kind="core")
def mean(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
) -> Tensor:  # K, (..., R, R)
    """Average the LoRAs, each multiplied by its weight.

    ``merged = sum_i weights[i] * deltas[i] / n``; a LoRA of weight 0 does not count, nor does one that lacks
    the layer.
    """
    count = max(int(weights.count_nonzero()), 1)
    return spread(weights / count, ranks).to(gram_up).diag().expand_as(gram_up)
