"""(IA)3 (arXiv:2205.05638): every row or every column of the base weight times a factor of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layout, is_packed
from ..patterns import NameEnds, WholePattern
from .bound import check_size
from .kind import Adapters, Kind
from .module import RawModule, numbers_of


@dataclass(frozen=True, eq=False)
class Ia3(BaseDependent):
    """``W * (1 + added)``, row by row or column by column."""

    kind: ClassVar[str] = "(IA)3"
    added: Tensor  # (n,): what is added to 1
    by_input: bool
    layout: Layout = "linear"
    key: str = ""
    stored: tuple[int, ...] = ()  # the shape of the factors in the file

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.added,)

    @property
    def is_optional(self) -> bool:
        return self.layout == "vector"  # PEFT scales the bias too, where the module has one

    def fits(self, shape: tuple[int, ...]) -> bool:
        return bool(shape) and self.added.numel() == shape[self._axis(len(shape))]

    def _axis(self, ndim: int) -> int:
        return 1 if self.by_input and ndim > 1 else 0

    def change(self, weight: Tensor, reader: str) -> Tensor:
        axis = self._axis(weight.ndim)
        check_size(self, weight)
        shape = [1] * weight.ndim
        shape[axis] = -1
        return weight * self.added.to(weight.device, torch.float32).reshape(shape)


def _ia3(module: RawModule, config: Mapping[str, Any]) -> Adapters:
    """Return the adapters of the weight and, where there is one, of the bias.

    LyCORIS trains what is added to 1 and says on which side; PEFT trains the factor, whose shape says it.

    PEFT's factor of the outputs multiplies the bias too.
    """
    factors = numbers_of(module, "ia3")
    if "on_input" in module.tensors:
        on_input = module.tensors["on_input"]
        if on_input.numel() != 1 or is_packed(on_input.dtype):
            raise LoraFormatError(f"the on_input of {module.stem} is not one value")
        return {"": Ia3(factors.flatten(), bool(on_input), key=module.stem)}
    added = factors.flatten().to(torch.float32) - 1
    by_input = _is_feedforward(module.stem, config)
    if factors.ndim == 2 and factors.shape[0] != factors.shape[1]:
        by_input = factors.shape[0] == 1
    weight = Ia3(added, by_input, key=module.stem, stored=tuple(factors.shape))
    bias = Ia3(added, False, layout="vector", key=module.stem)
    return {"": weight} if by_input else {"": weight, ".bias": bias}


def _is_feedforward(stem: str, config: Mapping[str, Any]) -> bool:
    """As PEFT matches module names: a pattern for the whole name, or ends of names."""
    path, modules = stem.removeprefix("base_model.model."), config.get("feedforward_modules") or []
    if isinstance(modules, str):
        pattern = modules if isinstance(modules, WholePattern) else WholePattern(modules)
        return pattern.fits(path)
    if not isinstance(modules, list):
        raise LoraFormatError("adapter_config.json: feedforward_modules is not a list of names")
    return (modules if isinstance(modules, NameEnds) else NameEnds(map(str, modules))).fit(path)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return _ia3(module, config)


IA3 = Kind(
    "(IA)3",
    {".ia3_l": "ia3", ".ia3_l.default": "ia3", ".on_input": "on_input"},
    (Ia3,),
    _read,
    weight_beside=(".on_input", "ia3"),
    peft_types=("IA3",),
)
