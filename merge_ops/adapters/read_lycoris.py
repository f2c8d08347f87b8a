"""LoHa, LoKr and full differences from the tensors of a file, with the scales that LyCORIS gives them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import Layout, LowRank
from . import Full, Hadamard, Kronecker
from .module import RawModule, alpha_of, check_core, check_factors


def loha(module: RawModule, scale: float | None, file: str) -> Hadamard:
    """``scale`` None: alpha over rank, or 1 without alpha. Tucker cores are multiplied in, which is exact."""
    t = module.tensors
    up_1, down_1, up_2, down_2 = (
        _needed(module, f"hada_{name}", file) for name in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    core_1, core_2 = t.get("hada_t1"), t.get("hada_t2")
    check_factors(module, [tensor for role, tensor in t.items() if role.startswith("hada_")], file)
    rank = down_1.shape[0]
    kernel: tuple[int, ...] = ()
    if core_1 is not None and core_2 is not None:
        kernel = tuple(core_1.shape[2:])
        up_1, down_1 = _with_core(core_1, up_1, down_1, module, file)
        up_2, down_2 = _with_core(core_2, up_2, down_2, module, file)
    elif core_1 is not None or core_2 is not None:
        raise LoraFormatError(f"{file}: {module.stem} has one Tucker core of two; the file is incomplete")
    shapes = {(up.shape[0], down.shape[1]) for up, down in ((up_1, down_1), (up_2, down_2))}
    if len(shapes) > 1 or up_1.shape[1] != down_1.shape[0] or up_2.shape[1] != down_2.shape[0]:
        raise _misfit(module, file)
    if scale is None:
        scale = alpha_of(module, file, rank)
    layout: Layout = "conv" if kernel else "linear"
    return Hadamard(up_1, down_1, up_2, down_2, scale, layout, kernel, module.stem)


def lokr(module: RawModule, scale: float | None, file: str) -> Kronecker:
    """``scale`` None: alpha over the rank of a decomposed factor; without one it is 1, whatever alpha says.

    A convolution's factor may be 4-D or flattened over its kernel; both give the same matrix.
    """
    left, rank_1, _ = _kronecker_factor(module, "w1", file)
    right, rank_2, kernel = _kronecker_factor(module, "w2", file)
    rank = rank_2 or rank_1
    if scale is None:
        scale = alpha_of(module, file, rank) if rank else 1.0
    layout: Layout = "conv" if kernel else "linear"
    found = Kronecker(left, right, rank or 1, scale, layout, kernel, module.stem)
    return found if rank else replace(found, rank_=min(found.matrix_shape))


def full(module: RawModule, file: str) -> Full | LowRank:
    """The tensor as it is; alpha has no meaning for it. That of a norm's weight is a vector."""
    change = module.tensors.get("diff", module.tensors.get("w_norm"))
    if change is None:
        raise LoraFormatError(f"{file}: {module.stem} has no diff; the file is incomplete")
    if change.ndim == 1:
        return vector(change, 1.0, module, file)
    check_factors(module, (change,), file)
    kernel = tuple(change.shape[2:])
    return Full(change.flatten(1), 1.0, "conv" if kernel else "linear", kernel, module.stem)


def vector(change: Tensor, scale: float, module: RawModule, file: str) -> LowRank:
    """The change of a bias or of a norm's weight: a matrix of one column, which has rank 1."""
    if change.ndim != 1:
        raise LoraFormatError(
            f"{file}: the change of a bias of {module.stem} has the shape {tuple(change.shape)}, which is "
            "no vector"
        )
    check_factors(module, (change[:, None],), file)
    return LowRank(change[:, None], change.new_ones(1, 1), scale, "vector", (), module.stem)


def _kronecker_factor(
    module: RawModule, name: str, file: str
) -> tuple[Tensor | LowRank, int | None, tuple[int, ...]]:
    """The factor as it is stored, the rank it is decomposed with, and the kernel folded into its columns."""
    t, role = module.tensors, f"lokr_{name}"
    if role in t:
        check_factors(module, (t[role],), file)
        return t[role].flatten(1), None, tuple(t[role].shape[2:])
    up, down = _needed(module, f"{role}_a", file), _needed(module, f"{role}_b", file)
    core = t.get(f"lokr_t{name[1]}")
    if core is not None:
        check_factors(module, (up, down, core), file)
        rank = down.shape[0]
        up, down = _with_core(core, up, down, module, file)
        return LowRank(up, down), rank, tuple(core.shape[2:])
    check_factors(module, (up, down), file)
    if not up.shape[1] == up.flatten(1).shape[1] == down.shape[0]:
        raise _misfit(module, file)
    return LowRank(up.flatten(1), down.flatten(1)), down.shape[0], tuple(down.shape[2:])


def _with_core(core: Tensor, up: Tensor, down: Tensor, module: RawModule, file: str) -> tuple[Tensor, Tensor]:
    """``einsum("i j k l, j r, i p -> p r k l")`` as one product ``(p, i) @ (i, r * k * l)``."""
    check_core(module, core, up.shape[0], down.shape[0], file)
    folded = torch.einsum("ij...,jr->ir...", core.to(torch.float32), down.to(torch.float32))
    return up.to(torch.float32).T, folded.flatten(1)


def _needed(module: RawModule, role: str, file: str) -> Tensor:
    if role not in module.tensors:
        there = ", ".join(sorted(module.tensors))
        raise LoraFormatError(f"{file}: {module.stem} has {there} and no {role}; the file is incomplete")
    return module.tensors[role]


def _misfit(module: RawModule, file: str) -> LoraFormatError:
    shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in sorted(module.tensors.items()))
    return LoraFormatError(f"{file}: the factors of {module.stem} do not fit each other: {shapes}")
