"""Kinds of adapters beside plain low-rank pairs: additive ones, and those that depend on the base weight."""

from .additive import Full, Hadamard, Kronecker
from .base_dependent import Bound, Dora, Glora, Ia3, Trained
from .rotations import InputRotation, Oft, cayley

__all__ = [
    "Bound",
    "Dora",
    "Full",
    "Glora",
    "Hadamard",
    "Ia3",
    "InputRotation",
    "Kronecker",
    "Oft",
    "Trained",
    "cayley",
]
