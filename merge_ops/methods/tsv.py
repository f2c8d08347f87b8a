"""TSV-M: the singular vectors of the LoRAs are made orthogonal to each other before they are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bases import bases_of, pseudo_power
from .registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("tsv", "TSV", paper="arXiv:2412.00081", kind="core")
def tsv(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
) -> Tensor:  # K, (..., R, R)
    """Turn the singular vectors of all LoRAs into the nearest ones that are orthogonal, then add.

    With ``deltas[i] = U_i diag(S_i) V_i``, all stacked: ``merged = U' diag(weights * S) V'``, where U' and V'
    are the orthogonal polar factors, ``U (U.T U)^-1/2`` and ``(V V.T)^-1/2 V``. Every component of a LoRA is
    kept, as its rank is low; directions that are exactly those of another LoRA share one.
    """
    bases = bases_of(gram_up, gram_down, ranks, weights)
    left, right = pseudo_power(bases.gram_left, -0.5), pseudo_power(bases.gram_right, -0.5)
    return bases.to_factors(left @ (bases.values[..., :, None] * right))
