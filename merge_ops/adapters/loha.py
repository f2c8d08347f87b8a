"""LoHa (LyCORIS, arXiv:2309.14859): the entrywise product of two low-rank matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import Index, Layer, Layout, Rows
from ..room import check_room, check_weight
from .kind import Adapters, Kind
from .module import RawModule, alpha_of, check_factors, factor_of, misfit
from .tucker import fold_core


@dataclass(frozen=True, eq=False)
class Hadamard(Layer):
    """LoHa: the entrywise product of two low-rank matrices, ``scale * (up_1 @ down_1) * (up_2 @ down_2)``."""

    up_1: Tensor  # (out, r)
    down_1: Tensor  # (r, in)
    up_2: Tensor
    down_2: Tensor
    scale: float = 1.0
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()
    key: str = ""
    kind: ClassVar[str] = "loha"

    @property
    def rank(self) -> int:
        return self.down_1.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.up_1.shape[0], self.down_1.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.up_1, self.down_1, self.up_2, self.down_2

    @property
    def knows_its_kernel(self) -> bool:
        return bool(self.kernel)  # LyCORIS writes some factors flattened

    def with_kernel(self, kernel: tuple[int, ...]) -> Layer:
        return replace(self, layout="conv", kernel=kernel)

    def take_rows(self, index: Index, key: str) -> Layer:
        return replace(self, up_1=self.up_1[index], up_2=self.up_2[index], key=key)

    @property
    def product_rank(self) -> int:
        return self.up_1.shape[1] * self.up_2.shape[1]

    def product_factors(self) -> tuple[Tensor, Tensor]:
        check_room(f"the factors of {self.key}", sum(self.matrix_shape), self.product_rank)
        up_1, down_1, up_2, down_2 = (factor.double() for factor in self.tensors)
        up = torch.einsum("oi,oj->oij", up_1, up_2).flatten(1)
        down = torch.einsum("in,jn->ijn", down_1, down_2).flatten(0, 1)
        return up, down

    def rows(self, device: torch.device | None) -> Rows:
        up_1, down_1, up_2, down_2 = (t.to(device=device, dtype=torch.float32) for t in self.tensors)
        up_1 = up_1 * self.scale

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            return torch.mm(up_1[index], down_1, out=out).mul_(up_2[index] @ down_2)

        return read


def _loha(module: RawModule, scale: float | None) -> Hadamard:
    """Return a module's layer, with Tucker cores multiplied in, which is exact.

    ``scale`` None means alpha over rank, or 1 without alpha.
    """
    t = module.tensors
    up_1, down_1, up_2, down_2 = (
        factor_of(module, f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    core_1, core_2 = t.get("hada_t1"), t.get("hada_t2")
    check_factors(module, [tensor for role, tensor in t.items() if role.startswith("hada_")])
    rank = down_1.shape[0]
    kernel: tuple[int, ...] = ()
    if core_1 is not None and core_2 is not None:
        kernel = tuple(core_1.shape[2:])
        up_1, down_1 = fold_core(core_1, up_1, down_1, module)
        up_2, down_2 = fold_core(core_2, up_2, down_2, module)
    elif core_1 is not None or core_2 is not None:
        raise LoraFormatError(f"{module.stem} has only one of two Tucker cores; the file is incomplete")
    shapes = {(up.shape[0], down.shape[1]) for up, down in ((up_1, down_1), (up_2, down_2))}
    flat = all(factor.ndim == 2 for factor in (up_1, down_1, up_2, down_2))
    if not flat or len(shapes) > 1 or up_1.shape[1] != down_1.shape[0] or up_2.shape[1] != down_2.shape[0]:
        raise misfit(module)
    check_weight(f"the delta of {module.stem}", up_1.shape[0], down_1.shape[1])
    if scale is None:
        scale = alpha_of(module, rank)
    layout: Layout = "conv" if kernel else "linear"
    return Hadamard(up_1, down_1, up_2, down_2, scale, layout, kernel, module.stem)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _loha(module, scale)}


LOHA = Kind(
    "LoHa",
    {
        f".hada_{part}{end}": f"hada_{part}"
        for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
        for end in ("", ".default")
    },
    (Hadamard,),
    _read,
    rank_roles=("hada_w1_b",),
    peft_types=("LOHA",),
    peft_alpha="alpha",
)
