"""LoKr (LyCORIS, arXiv:2309.14859): the Kronecker product of two factors, each whole or decomposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..lora import Index, Layer, Layout, LowRank, Rows
from ..room import check_room, check_weight
from .kind import Adapters, Kind
from .module import RawModule, alpha_of, check_factors, factor_of, misfit, refuse_beside
from .tucker import fold_core


@dataclass(frozen=True, eq=False)
class Kronecker(Layer):
    """LoKr: ``scale * kron(left, right)``; a factor that the file decomposes is multiplied out when used."""

    left: Tensor | LowRank  # (a, b)
    right: Tensor | LowRank  # (c, d), d with the kernel in it; the delta is (a * c, b * d)
    rank_: int
    scale: float = 1.0
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()
    key: str = ""
    kind: ClassVar[str] = "lokr"

    @property
    def rank(self) -> int:
        return self.rank_

    @property
    def matrix_shape(self) -> tuple[int, int]:
        (a, b), (c, d) = _shape(self.left), _shape(self.right)
        return a * c, b * d

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        halves = (self.left, self.right)
        return tuple(t for half in halves for t in (half.tensors if isinstance(half, LowRank) else (half,)))

    @property
    def knows_its_kernel(self) -> bool:
        return bool(self.kernel)  # LyCORIS writes some factors flattened

    def with_kernel(self, kernel: tuple[int, ...]) -> Layer:
        return replace(self, layout="conv", kernel=kernel)

    def kronecker_factors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        return _matrix(self.left, device), _matrix(self.right, device)

    @property
    def product_rank(self) -> int:
        return _product_rank(self.left) * _product_rank(self.right)

    def product_factors(self) -> tuple[Tensor, Tensor]:
        rows, columns = self.matrix_shape
        check_room(f"the factors of {self.key}", rows + columns, self.product_rank)
        (up_1, down_1), (up_2, down_2) = _product(self.left), _product(self.right)
        return torch.kron(up_1, up_2), torch.kron(down_1, down_2)

    def rows(self, device: torch.device | None) -> Rows:
        left, right = self.kronecker_factors(device)
        left = left * self.scale
        every = torch.arange(self.matrix_shape[0], device=left.device)

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            chosen = every[index]
            blocks = left[chosen // right.shape[0], :, None] * right[chosen % right.shape[0], None, :]
            chosen_rows = blocks.flatten(1)
            return chosen_rows if out is None else out.copy_(chosen_rows)

        return read


def _shape(factor: Tensor | LowRank) -> tuple[int, int]:
    rows, columns = factor.matrix_shape if isinstance(factor, LowRank) else factor.shape
    return rows, columns


def _product_rank(factor: Tensor | LowRank) -> int:
    return factor.rank if isinstance(factor, LowRank) else min(factor.shape)


def _product(factor: Tensor | LowRank) -> tuple[Tensor, Tensor]:
    """Up and down of a factor, in float64; one that is whole is its own up or down."""
    if isinstance(factor, LowRank):
        return factor.up.double() * factor.scale, factor.down.double()
    whole = torch.eye(min(factor.shape), dtype=torch.float64, device=factor.device)
    rows, columns = factor.shape
    return (whole, factor.double()) if rows <= columns else (factor.double(), whole)


def _matrix(factor: Tensor | LowRank, device: torch.device | None) -> Tensor:
    if isinstance(factor, LowRank):
        return factor.matrix(device)
    return factor.to(device=device, dtype=torch.float32)


def _lokr(module: RawModule, scale: float | None) -> Kronecker:
    """Return a module's layer.

    ``scale`` None means alpha over the rank of a decomposed factor, or 1 if both factors are whole.
    A convolution's factor may be 4-D or flattened over its kernel; both give the same matrix.
    """
    left, rank_1, _ = _kronecker_factor(module, "w1")
    right, rank_2, kernel = _kronecker_factor(module, "w2")
    rank = rank_2 or rank_1
    if scale is None:
        scale = alpha_of(module, rank) if rank else 1.0
    layout: Layout = "conv" if kernel else "linear"
    layer = Kronecker(left, right, rank or 1, scale, layout, kernel, module.stem)
    check_weight(f"the delta of {module.stem}", *layer.matrix_shape)
    return layer if rank else replace(layer, rank_=min(layer.matrix_shape))


def _kronecker_factor(module: RawModule, name: str) -> tuple[Tensor | LowRank, int | None, tuple[int, ...]]:
    """The factor as it is stored, the rank it is decomposed with, and the kernel folded into its columns."""
    t, role = module.tensors, f"lokr_{name}"
    refuse_beside(module, role, role in t, (f"{role}_a", f"{role}_b", f"lokr_t{name[1]}"))
    if role in t:
        check_factors(module, (t[role],))
        return t[role].flatten(1), None, tuple(t[role].shape[2:])
    up, down = factor_of(module, f"{role}_a"), factor_of(module, f"{role}_b")
    core = t.get(f"lokr_t{name[1]}")
    if core is not None:
        check_factors(module, (up, down, core))
        rank = down.shape[0]
        up, down = fold_core(core, up, down, module)
        return LowRank(up, down), rank, tuple(core.shape[2:])
    check_factors(module, (up, down))
    if not up.shape[1] == up.flatten(1).shape[1] == down.shape[0]:
        raise misfit(module)
    return LowRank(up.flatten(1), down.flatten(1)), down.shape[0], tuple(down.shape[2:])


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _lokr(module, scale)}


LOKR = Kind(
    "LoKr",
    {
        f".lokr_{part}{end}": f"lokr_{part}"
        for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
        for end in ("", ".default")
    },
    (Kronecker,),
    _read,
    rank_roles=("lokr_w2_b", "lokr_w1_b"),
    whole_roles=("lokr_w1", "lokr_w1_a"),
    peft_types=("LOKR",),
    peft_alpha="alpha",
)
