"""The tensors of one module of a file by role, before they are understood."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import LoraFormatError
from .container import is_packed

UNRECOGNISED = "unrecognised key"  # the reason given for a key whose ending means nothing to us


@dataclass(slots=True)
class RawModule:
    """``tensors`` by role; ``other_kinds`` names what is there besides and is not merged yet."""

    stem: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    other_kinds: set[str] = field(default_factory=set)


def alpha_of(module: RawModule, file: str, rank: int) -> float:
    """Alpha over rank, or 1 without alpha."""
    if "alpha" not in module.tensors:
        return 1.0
    tensor = module.tensors["alpha"]
    if tensor.numel() != 1:
        raise LoraFormatError(
            f"{file}: the alpha of {module.stem} has {tensor.numel()} values instead of one"
        )
    if tensor.dtype.is_complex or is_packed(tensor.dtype):
        raise LoraFormatError(
            f"{file}: the alpha of {module.stem} is stored as {tensor.dtype}, not as a number"
        )
    return float(tensor) / rank


def check_factors(module: RawModule, factors: Iterable[Tensor], file: str) -> None:
    """Refuse factors that are no matrices, empty, or stored as something else than floating point."""
    for factor in factors:
        if factor.ndim < 2 or 0 in factor.shape:
            raise LoraFormatError(
                f"{file}: a factor of {module.stem} has the shape {tuple(factor.shape)}, which is no matrix"
            )
        if not factor.dtype.is_floating_point or is_packed(factor.dtype):
            raise LoraFormatError(
                f"{file}: {module.stem} is stored as {factor.dtype}; quantised adapters are not supported"
            )
