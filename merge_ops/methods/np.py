"""NP-LoRA: the subject gives way where the style reads its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch

from .bases import bases_of, spread
from .registry import Param, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    "np",
    "NP-LoRA",
    paper="arXiv:2511.11051",
    kind="core",
    breaks={"order": "its place in the list says which LoRA is the style"},
)
def np(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
    *,
    style: Annotated[
        Literal["last", "first"],
        Param("Which LoRA of the list is the style. All others are subjects, and give way to it."),
    ] = "last",
    mu: Annotated[
        float,
        Param(
            (
                "How far the subjects give way to the style: 0 gives the sum, 0.5 removes a third of what a "
                "subject does on the inputs that the style reads, 100 nearly all of it."
            ),
            min=0,
            max=100,
            step=0.1,
        ),
    ] = 0.5,
    places: Sequence[tuple[int, int]],  # (place in the list, length of the list) of each LoRA
) -> Tensor:  # K, (..., R, R)
    """Add a style and subjects, with the subjects damped on the inputs that the style reads.

    ``merged = style + subjects (I - mu / (1 + mu) V.T V)``, both with their weights, V the right singular
    vectors of the style. In a layer that the style lacks, the subjects are added.
    """
    scales = spread(weights, ranks).to(gram_up)
    core = scales.diag().expand_as(gram_up).clone()
    wanted = [length - 1 if style == "last" else 0 for _, length in places]
    leading = [place == want for (place, _), want in zip(places, wanted, strict=True)]
    if not any(leading) or not mu:
        return core
    right = bases_of(gram_up, gram_down, ranks, weights).right
    of_style = spread(torch.tensor(leading), ranks).to(gram_up)
    read = right * of_style[:, None]  # V = read @ down
    reading = gram_down @ read.mT @ read  # down @ V.T @ V, in terms of down
    return core - mu / (1 + mu) * (scales * (1 - of_style))[:, None] * reading
