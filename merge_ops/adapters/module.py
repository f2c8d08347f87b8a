"""The tensors of one module of a file by role, and the checks that several kinds share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import is_packed

_MAX_RANK = 4096  # that may exceed the sides of a weight, as of a convolution with few channels
_MAX_KERNEL = 64  # entries; a Tucker core multiplies a factor by as many


@dataclass(slots=True)
class RawModule:
    """``tensors`` by role; ``refused_kinds`` names the kinds found in it that cannot be merged."""

    stem: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    refused_kinds: set[str] = field(default_factory=set)


def alpha_of(module: RawModule, rank: int) -> float:
    """Return alpha over rank, or 1 without alpha.

    Raises:
        LoraFormatError: if alpha is no number. Infinity is one only where alpha is not used.
    """
    if "alpha" not in module.tensors:
        return 1.0
    alpha = stored_alpha(module)
    if not math.isfinite(alpha):
        raise LoraFormatError(
            f"the alpha of {module.stem} is {alpha:g}, which is not a scale; float16 ends at 65504, so the "
            "file was damaged when it was saved: use another copy"
        )
    if rank == 0:
        raise LoraFormatError(f"the factors of {module.stem} have rank 0, so its alpha scales nothing")
    return alpha / rank


def stored_alpha(module: RawModule) -> float:
    """Return a module's alpha as it is stored, which may be infinite."""
    tensor = module.tensors["alpha"]
    if tensor.numel() != 1:
        raise LoraFormatError(f"the alpha of {module.stem} has {tensor.numel()} values instead of one")
    if tensor.dtype.is_complex or is_packed(tensor.dtype):
        raise LoraFormatError(f"the alpha of {module.stem} is stored as {tensor.dtype}, not as a number")
    return float(tensor)


def check_core(module: RawModule, core: Tensor, first: int, second: int) -> None:
    """Refuse a Tucker core ``(first, second, *kernel)`` that does not fit, or is no kernel of any model."""
    kernel = math.prod(core.shape[2:])
    fits = core.ndim >= 3 and tuple(core.shape[:2]) == (first, second) and kernel > 0
    if not fits or first * kernel > _MAX_KERNEL * second:  # a core of another rank multiplies as well
        raise LoraFormatError(
            f"the factors of {module.stem} do not fit each other: its Tucker core is "
            f"{tuple(core.shape)}, and ({first}, {second}, ...) is expected, which makes a factor at most "
            f"{_MAX_KERNEL} times as large"
        )


def check_factors(module: RawModule, factors: Iterable[Tensor]) -> None:
    """Refuse factors that are empty, not matrices, or not stored in floating point."""
    for factor in factors:
        if factor.ndim < 2 or 0 in factor.shape:
            raise LoraFormatError(
                f"a factor of {module.stem} has the shape {tuple(factor.shape)}, which is not a matrix"
            )
        if not factor.dtype.is_floating_point or is_packed(factor.dtype):
            raise LoraFormatError(
                f"{module.stem} is stored as {factor.dtype}; quantised adapters are not supported"
            )


def check_rank(module: RawModule, rank: int, rows: int, columns: int) -> None:
    """Refuse a rank far above the sides of the delta: what is computed from it grows with its square."""
    if rank > max(_MAX_RANK, min(rows, columns)):
        raise LoraFormatError(
            f"{module.stem} has rank {rank} for a weight of {rows} x {columns}, of which "
            f"{min(rows, columns)} would hold everything; the file is damaged, or made to fill memory"
        )


def padded_shape(module: RawModule, entries: int) -> tuple[int, ...]:
    """Return the shape that the base weight is padded to: that of the delta, so no file can ask for more."""
    if "reshape" not in module.tensors:
        return ()
    stored = module.tensors["reshape"]
    whole = not (stored.dtype.is_complex or stored.dtype == torch.bool or is_packed(stored.dtype))
    sizes = tuple(int(size) for size in stored.flatten()[:8].tolist()) if whole else ()
    if not sizes or min(sizes) < 1 or math.prod(sizes) != entries:
        raise LoraFormatError(
            f"reshape_weight of {module.stem} is not the shape of its delta, which has {entries} entries"
        )
    return sizes


def numbers_of(module: RawModule, role: str) -> Tensor:
    """Return the tensor of a role as it is stored, which must be there, not empty, and in floating point."""
    tensor = factor_of(module, role)
    if tensor.numel() == 0:
        raise LoraFormatError(f"the {role} of {module.stem} is empty; the file is damaged")
    if not tensor.dtype.is_floating_point or is_packed(tensor.dtype):
        raise LoraFormatError(
            f"{module.stem} is stored as {tensor.dtype}; quantised adapters are not supported"
        )
    return tensor


def factor_of(module: RawModule, role: str) -> Tensor:
    """Return the tensor of a role, which must be there."""
    if role not in module.tensors:
        there = ", ".join(sorted(module.tensors))
        raise LoraFormatError(f"{module.stem} has {there} and no {role}; the file is incomplete")
    return module.tensors[role]


def refuse_beside(module: RawModule, what: str, is_there: bool, others: Iterable[str]) -> None:
    """Refuse tensors beside others that would make them count for nothing."""
    stray = sorted(set(others) & module.tensors.keys())
    if is_there and stray:
        raise LoraFormatError(
            f"{module.stem} has {what} and also {', '.join(stray)}, of which programs read only one; keep one"
        )


def misfit(module: RawModule) -> LoraFormatError:
    """Return the error of factors whose shapes contradict each other."""
    shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in sorted(module.tensors.items()))
    return LoraFormatError(f"the factors of {module.stem} do not fit each other: {shapes}")
