"""Adapters that depend on the base weight together with that weight, and weights that were trained whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import IncompatibleLoraError, MergeError
from ..lora import BaseDependent, Index, Layer, Layout, Rows
from ..steady import one_thread
from .kind import Kind


def check_size(adapter: BaseDependent, weight: Tensor) -> None:
    """Refuse a base weight that an adapter was not made for."""
    if not adapter.fits(tuple(weight.shape)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in adapter.tensors)
        raise IncompatibleLoraError(
            f"{adapter.key} is a {adapter.kind} of {shapes}, which does not fit the base model's weight "
            f"{tuple(weight.shape)}; it was made for another model"
        )


@dataclass(frozen=True, eq=False)
class Trained(BaseDependent):
    """A weight that was trained as a whole; its change is the difference from the base weight."""

    kind: ClassVar[str] = "trained weight"
    value: Tensor
    layout: Layout = "linear"
    key: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.value,)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return tuple(self.value.shape) == shape

    def change(self, weight: Tensor, reader: str) -> Tensor:
        check_size(self, weight)
        return self.value.to(weight.device, torch.float32) - weight


@dataclass(frozen=True, eq=False)
class Bound(Layer):
    """A base-dependent adapter with its weight: a full delta, made when it is read."""

    adapter: BaseDependent
    base: Tensor  # in the shape in which the model stores it
    reader: str = "peft"
    scale: float = 1.0
    lora: str = ""  # the name of the LoRA, for messages

    @property
    def kind(self) -> str:
        return self.adapter.kind

    @property
    def layout(self) -> Layout:  # type: ignore[override]  # never assigned: it follows the adapter
        if self.base.ndim == 1:
            return "vector"
        return "conv" if self.base.ndim > 2 else self.adapter.layout

    @property
    def kernel(self) -> tuple[int, ...]:  # type: ignore[override]  # never assigned: it follows the base
        return tuple(self.base.shape[2:])

    @property
    def key(self) -> str:  # type: ignore[override]  # never assigned: it follows the adapter
        return self.adapter.key

    @property
    def rank(self) -> int:
        return self.adapter.configured_rank or min(self.matrix_shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        if self.stored_in_out:
            return self.base.shape[1], self.base.shape[0]
        return self.base.shape[0], math.prod(self.base.shape[1:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        turned = self.base.shape[::-1] if self.stored_in_out else self.base.shape
        return tuple(self.base.shape) == shape and self.adapter.fits(tuple(turned))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.adapter.tensors, self.base)

    @property
    def alpha_scale(self) -> float | None:
        return self.adapter.alpha_scale

    @property
    def rescales_base(self) -> bool:
        return self.adapter.rescales_base

    @property
    def is_checked_when_read(self) -> bool:
        return True

    def rows(self, device: torch.device | None) -> Rows:
        base = self.base.to(device=device, dtype=torch.float32)
        with one_thread():
            change = self.adapter.change(base.T if self.stored_in_out else base, self.reader)
        matrix = change.reshape(self.matrix_shape)
        # a sum shows NaN and infinity for the price of reading; one that overflows is looked at again
        if not (math.isfinite(float(matrix.sum())) or bool(torch.isfinite(matrix).all())):
            raise MergeError(
                f"{self.key} of {self.lora} ({self.adapter.kind}) contains NaN or infinity; its weight in "
                "the base model or the file is damaged"
            )

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            return torch.mul(matrix[index], self.scale, out=out)

        return read


TRAINED = Kind("trained weight", records=(Trained,))


BOUND = Kind("bound adapter", records=(Bound,))
