"""Kinds of adapters beside plain low-rank pairs: additive ones, and those that depend on the base weight."""

from .additive import Full, Hadamard, Kronecker
from .based import Bound, Dora, Glora, Scaling, Trained
from .rotations import InputRotation, Oft, cayley

__all__ = [
    "Bound",
    "Dora",
    "Full",
    "Glora",
    "Hadamard",
    "InputRotation",
    "Kronecker",
    "Oft",
    "Scaling",
    "Trained",
    "cayley",
]
