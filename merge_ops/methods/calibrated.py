"""Calibrated: each LoRA keeps its answer on the inputs that it was recorded with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch

from ..steady import divided
from .bases import IGNORES_SIZE, bases_of, selectors
from .registry import Param, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    "calibrated",
    "Calibrated",
    paper="arXiv:2606.10617",
    kind="core",
    breaks=IGNORES_SIZE,
)
def calibrated(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
    *,
    ridge: Annotated[
        float,
        Param(
            (
                "How close the result stays to the sum of the LoRAs. Lower values follow the recording more "
                "closely and trust its few inputs more; high values give the sum."
            ),
            min=0.001,
            max=100,
            step=0.1,
        ),
    ] = 1.0,
    moments: Tensor,  # (n, ..., R, R)
) -> Tensor:  # K, (..., R, R)
    """Let each LoRA act on the inputs recorded with it as it does alone; needs a recording.

    With ``deltas[i] = U_i diag(S_i) V_i`` (thin SVD), all V_i stacked to V, ``G_i`` is the mean of ``z z.T``
    with ``z = V x``, over the inputs x of the layer while LoRA i alone is active on its own prompts, scaled
    so that its trace is ``R * |weights[i]| / max |weights|``; ``E_i`` selects the rows of LoRA i. The merge
    is ``U C (sum_i E_i G_i + ridge * g I) (sum_i G_i + ridge * g I)^-1 V``, with C the singular values times
    the weights and g the mean diagonal of ``sum_i G_i``.

    It is regression as in RegMean (arXiv:2212.09849), restricted to the directions that the LoRAs read, as in
    SSR-Merge (the cited paper). Ours takes those directions from the deltas, so that rewriting a LoRA changes
    nothing, and all LoRAs have the same say, however large their inputs are.
    """
    bases = bases_of(gram_up, gram_down, ranks, weights)
    own = selectors(ranks, gram_up)  # (n, R)
    live = bases.live.to(gram_up.dtype)
    count = live.sum(-1).clamp(min=1)
    seen = bases.right @ moments.to(gram_up) @ bases.right.mT  # (n, ..., R, R)
    says = weights.to(gram_up).abs() / weights.abs().max().clamp(min=1e-300)
    traces = seen.diagonal(dim1=-2, dim2=-1).sum(-1)
    shares = torch.where(traces > 0, count / traces.clamp(min=1e-300), 0.0)  # (n, ...)
    seen = seen * (shares * says.view(-1, *[1] * (shares.ndim - 1)))[..., None, None]
    total = seen.sum(0)
    kept = sum(rows[:, None] * each for rows, each in zip(own, seen, strict=True))
    size = total.diagonal(dim1=-2, dim2=-1).sum(-1) / count
    # a direction without energy is given a 1 of its own, and so is a layer whose inputs were all zero
    ridges = torch.where(live > 0, torch.where(size > 0, ridge * size, 1.0)[..., None], 1.0).diag_embed()
    solution = divided(kept + ridges, total + ridges)
    return bases.to_factors(bases.values[..., :, None] * solution)
