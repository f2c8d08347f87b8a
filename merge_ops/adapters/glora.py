"""GLoRA (arXiv:2306.07967), as LyCORIS has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..lora import BaseDependent, Layout
from .bound import check_size
from .kind import Adapters, Kind
from .module import RawModule, alpha_of, check_core, check_factors, numbers_of


@dataclass(frozen=True, eq=False)
class Glora(BaseDependent):
    """GLoRA (arXiv:2306.07967) as LyCORIS has it: ``scale * (W @ a1 @ a2 + b1 @ b2)``.

    Older files of LyCORIS hold the same factors transposed and in the other order; shapes tell them apart.
    """

    kind: ClassVar[str] = "GLoRA"
    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor  # with a Tucker core multiplied in, where there is one
    alpha: float | None
    layout: Layout = "linear"
    key: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.a1, self.a2, self.b1, self.b2

    @property
    def alpha_scale(self) -> float | None:
        return self.alpha

    def fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        a1, a2, b1, b2 = self._ordered(shape)
        inner = a1.shape[1] == a2.shape[0] and b1.shape[1] == b2.shape[0]
        outer = a1.shape[0] == a2.shape[1] == shape[1] and b1.shape[0] == shape[0]
        return inner and outer and b2.shape[1] == math.prod(shape[1:])

    def _ordered(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The factors in the order of newer files."""
        a1, a2, b1, b2 = self.tensors
        return (a1, a2, b1, b2) if (a1.shape[0], b1.shape[0]) == (shape[1], shape[0]) else (a2, a1, b2, b1)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        check_size(self, weight)
        a1, a2, b1, b2 = (t.to(weight.device, torch.float32) for t in self._ordered(tuple(weight.shape)))
        scale = 1.0 if self.alpha is None else self.alpha / a1.shape[1]
        through = torch.einsum("oi...,ij->oj...", torch.einsum("oi...,ij->oj...", weight, a1), a2)
        return through.add_((b1 @ b2).reshape(weight.shape)).mul_(scale)


def _glora(module: RawModule) -> Glora:
    parts = [numbers_of(module, name) for name in ("a1", "a2", "b1", "b2")]
    core = module.tensors.get("bm")
    check_factors(module, parts if core is None else [*parts, core])
    a1, a2, b1, b2 = (part.flatten(1) for part in parts)
    if core is not None:  # (rank, rank, *kernel) between b1 and b2
        check_core(module, core, b1.shape[1], b2.shape[0])
        b2 = torch.einsum("ab...,bi->ai...", core.to(torch.float32), b2.to(torch.float32)).flatten(1)
    alpha = alpha_of(module, 1) if "alpha" in module.tensors else None
    return Glora(a1, a2, b1, b2, alpha, key=module.stem)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _glora(module)}


GLORA = Kind("GLoRA", {f".{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")}, (Glora,), _read)
