"""KnOTS-TIES: TIES on coordinates in which the LoRAs are aligned with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from .consensus import VOTES, SignVote
from .registry import Param, merge_method
from .sparsify import DROPS_ENTRIES
from .ties import ties

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    "knots_ties",
    "KnOTS-TIES",
    paper="arXiv:2410.19735",
    kind="coordinates",
    breaks=DROPS_ENTRIES | VOTES,
)
def knots_ties(
    coordinates: Tensor,  # (n, ..., R, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of each LoRA's coordinates that is kept, largest first: 0.5 keeps half. Lower "
                "values give a softer effect; 1 keeps everything."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.5,
    majority_sign_method: SignVote = "total",
    overwrite: bool = False,
) -> Tensor:  # (..., R, in)
    """Write the LoRAs in one basis of singular vectors that they share, and merge the coordinates by TIES.

    1. align: ``[deltas[0] ... deltas[n - 1]] = U diag(S) [V_0 ... V_(n - 1)]``, one thin SVD; the coordinates
       of LoRA i are ``diag(S) V_i``
    2. trim, elect and average the coordinates as ``ties`` does the entries of deltas
    3. ``merged = U @ coordinates``, of rank R
    """
    return ties(
        coordinates, weights, density=density, majority_sign_method=majority_sign_method, overwrite=overwrite
    )
