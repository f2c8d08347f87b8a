"""PEFT's eleven ``combination_type`` names, as a table over our methods and spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UnknownMethodError, did_you_mean

Space = Literal["delta", "factors"]
SPACES: tuple[Space, ...] = ("delta", "factors")


@dataclass(frozen=True, slots=True)
class CombinationType:
    """What one name of ``peft.LoraModel.add_weighted_adapter`` means."""

    method: str
    space: Space
    truncated: bool  # an SVD to ``svd_rank`` follows


COMBINATION_TYPES: dict[str, CombinationType] = {
    "cat": CombinationType("linear", "delta", False),
    "linear": CombinationType("linear", "factors", False),
    "svd": CombinationType("linear", "delta", True),
    "ties": CombinationType("ties", "factors", False),
    "ties_svd": CombinationType("ties", "delta", True),
    "dare_linear": CombinationType("dare_linear", "factors", False),
    "dare_linear_svd": CombinationType("dare_linear", "delta", True),
    "dare_ties": CombinationType("dare_ties", "factors", False),
    "dare_ties_svd": CombinationType("dare_ties", "delta", True),
    "magnitude_prune": CombinationType("magnitude_prune", "factors", False),
    "magnitude_prune_svd": CombinationType("magnitude_prune", "delta", True),
}


def get_combination_type(name: str) -> CombinationType:
    """Return the row called ``name`` or raise UnknownMethodError with a suggestion."""
    if name not in COMBINATION_TYPES:
        raise UnknownMethodError(
            f"unknown combination_type {name!r}{did_you_mean(str(name), COMBINATION_TYPES)}"
        )
    return COMBINATION_TYPES[name]
