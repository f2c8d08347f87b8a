"""DARE: drop entries at random and rescale the rest."""

from typing import Annotated

from torch import Tensor

from .linear import weighted_sum
from .registry import Param, merge_method
from .sparsify import MaskGenerator, drop_random


@merge_method("dare_linear", "DARE", paper="arXiv:2311.03099")
def dare_linear(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            "How much of each LoRA is kept: entries chosen at random, 0.7 is 70 %; they are scaled up to "
            "make up for it. Lower means fewer conflicts, but noise; 1 keeps all.",
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 0.7,
    generator: MaskGenerator,
    overwrite: bool = False,
) -> Tensor:  # (..., out, in)
    """Drop entries of each LoRA at random, divide the rest by the density, and add them."""
    kept = drop_random(deltas, density, generator, overwrite)
    return weighted_sum(kept, weights, overwrite or kept is not deltas)
