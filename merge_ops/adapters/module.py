"""The tensors of one module of a file by role, before they are understood."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import is_packed

_MAX_KERNEL = 64  # entries; a Tucker core multiplies a factor by as many
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


def check_core(module: RawModule, core: Tensor, first: int, second: int, file: str) -> None:
    """Refuse a Tucker core ``(first, second, *kernel)`` that does not fit, or is no kernel of any model."""
    kernel = math.prod(core.shape[2:])
    if core.ndim < 3 or tuple(core.shape[:2]) != (first, second) or not 0 < kernel <= _MAX_KERNEL:
        raise LoraFormatError(
            f"{file}: the factors of {module.stem} do not fit each other: its Tucker core is "
            f"{tuple(core.shape)}, and ({first}, {second}, ...) with a kernel of at most {_MAX_KERNEL} "
            "entries is expected"
        )


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


def padded_shape(module: RawModule, entries: int, file: str) -> tuple[int, ...]:
    """The shape that the weight is padded to, which is that of the delta: no file makes it larger."""
    if "reshape" not in module.tensors:
        return ()
    stored = module.tensors["reshape"]
    whole = not (stored.dtype.is_complex or stored.dtype == torch.bool or is_packed(stored.dtype))
    sizes = tuple(int(size) for size in stored.flatten()[:8].tolist()) if whole else ()
    if not sizes or min(sizes) < 1 or math.prod(sizes) != entries:
        raise LoraFormatError(
            f"{file}: reshape_weight of {module.stem} is not the shape of its delta, which has {entries} "
            "entries"
        )
    return sizes
