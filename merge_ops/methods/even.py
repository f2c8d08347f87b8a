"""Even: a sum that counts once what several LoRAs do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch

from .bases import IGNORES_SIZE, bases_of, selectors, spread
from .registry import Param, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    "even",
    "Even",
    paper="arXiv:2212.09849",
    kind="core",
    breaks=IGNORES_SIZE,
)
def even(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
    *,
    ridge: Annotated[
        float,
        Param(
            (
                "How close the result stays to the sum of the LoRAs. Lower values damp more where LoRAs do "
                "the same: at 1, what two LoRAs both do counts 1.2 to 2 times, the less the stronger it is. "
                "High values give the sum."
            ),
            min=0,
            max=100,
            step=0.1,
        ),
    ] = 1.0,
) -> Tensor:  # K, (..., R, R)
    """Add the LoRAs, and damp the sum where several do the same, so that it is not counted twice.

    With ``T_i = weights[i] * deltas[i]``, ``s_i`` the largest singular value of ``T_i`` and ``c_i =
    |weights[i]| / max |weights|``, the merge minimises over W ::

        sum_i c_i / s_i**2 * (|(W - T_i) T_i.T|**2 + |T_i.T (W - T_i)|**2) + ridge * |W - sum_i T_i|**2

    Each LoRA wants its own answer on the inputs and outputs that it uses itself, by their energy. The first
    term alone, on inputs that were recorded, is RegMean, the cited paper; here no data is needed, and both
    sides count. In the cores it is a Sylvester equation, solved by two eigendecompositions.
    """
    bases = bases_of(gram_up, gram_down, ranks, weights)
    owners = selectors(ranks, gram_up)  # (n, R)
    largest = spread((owners * bases.sizes[..., None, :]).amax(-1), ranks)  # of the LoRA of each direction
    says = bases.weights.abs() / bases.weights.abs().max().clamp(min=1e-300)
    energies = says * (bases.sizes / largest.clamp(min=1e-300)).square()  # (..., R)
    roots = energies.sqrt()
    # W = U diag(roots) Z diag(roots) V with  P Z + Z Q + ridge * Z = diag(wanted)
    wanted = torch.where(energies > 0, bases.values * (2 + ridge / energies.clamp(min=1e-300)), 0.0)
    p, of_p = torch.linalg.eigh(roots[..., :, None] * bases.gram_left * roots[..., None, :])
    q, of_q = torch.linalg.eigh(roots[..., :, None] * bases.gram_right * roots[..., None, :])
    sums = p.clamp(min=0)[..., :, None] + q.clamp(min=0)[..., None, :] + ridge
    smallest = 1e-12 * sums.amax((-2, -1), keepdim=True).clamp(min=1e-300)
    turned = of_p.mT @ (wanted[..., :, None] * of_q)
    solved = of_p @ torch.where(sums > smallest, turned / sums.clamp(min=1e-300), 0.0) @ of_q.mT
    return bases.to_factors(roots[..., :, None] * solved * roots[..., None, :])
