"""Adapters whose change depends on the base weight: DoRA, GLoRA, (IA)3, whole trained weights, and rotations.

Each says what it adds to a weight at strength 1. With the weight beside it an adapter is a layer like any
other, and every method merges it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import IncompatibleLoraError, MergeError
from ..lora import BaseDependent, Index, Layer, Layout, Rows


@dataclass(frozen=True, eq=False)
class Dora(BaseDependent):
    """DoRA (arXiv:2402.09353): ``magnitude * (W + delta) / norm``, over the rows of W or over its columns.

    The norm is that of ``W + delta`` in PEFT, diffusers and LyCORIS. ComfyUI takes that of W where the
    magnitudes are those of rows. ``delta`` is a LoRA, or a LoHa or LoKr as LyCORIS decomposes them too.
    """

    kind: ClassVar[str] = "DoRA"
    delta: Layer
    magnitude: Tensor  # (out, 1) or (1, in)
    layout: Layout = "linear"
    key: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.delta.tensors, self.magnitude)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        delta = self.delta.matrix(weight.device)
        check_size(self, weight, delta.numel() == weight.numel() and delta.shape[0] == weight.shape[0])
        merged = weight + delta.reshape(weight.shape)
        by_rows = self.magnitude.shape[0] == weight.shape[0]
        check_size(self, weight, by_rows or self.magnitude.shape[1] == weight.shape[1])
        measured = weight if by_rows and reader == "comfyui" else merged
        axes = [axis for axis in range(weight.ndim) if axis != (0 if by_rows else 1)]
        norm = measured.square().sum(axes, keepdim=True).sqrt_().add_(torch.finfo(torch.float32).eps)
        magnitude = self.magnitude.to(weight.device, torch.float32).reshape(norm.shape)
        return merged.mul_(magnitude / norm).sub_(weight)


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

    def change(self, weight: Tensor, reader: str) -> Tensor:
        a1, a2, b1, b2 = (t.to(weight.device, torch.float32) for t in self.tensors)
        inputs = weight.shape[1]
        if not (a1.shape[0] == inputs and b1.shape[0] == weight.shape[0]):
            a1, a2, b1, b2 = a2, a1, b2, b1
        fits = a1.shape[0] == a2.shape[1] == inputs and a1.shape[1] == a2.shape[0]
        fits = fits and b1.shape[1] == b2.shape[0] and b1.shape[0] == weight.shape[0]
        check_size(self, weight, fits and b2.shape[1] * weight.shape[0] == weight.numel())
        scale = 1.0 if self.alpha is None else self.alpha / a1.shape[1]
        through = torch.einsum("oi...,ij->oj...", torch.einsum("oi...,ij->oj...", weight, a1), a2)
        return through.add_((b1 @ b2).reshape(weight.shape)).mul_(scale)


@dataclass(frozen=True, eq=False)
class Ia3(BaseDependent):
    """(IA)3 (arXiv:2205.05638): every row or every column of W times a factor of its own."""

    kind: ClassVar[str] = "(IA)3"
    added: Tensor  # (n,): what is added to 1
    by_input: bool
    layout: Layout = "linear"
    key: str = ""
    stored: tuple[int, ...] = ()  # the shape of the factors in the file

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.added,)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        axis = 1 if self.by_input and weight.ndim > 1 else 0
        check_size(self, weight, self.added.numel() == weight.shape[axis])
        shape = [1] * weight.ndim
        shape[axis] = -1
        return weight * self.added.to(weight.device, torch.float32).reshape(shape)


@dataclass(frozen=True, eq=False)
class Trained(BaseDependent):
    """A weight that was trained as a whole: its change is what it differs by."""

    kind: ClassVar[str] = "trained weight"
    value: Tensor
    layout: Layout = "linear"
    key: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.value,)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        check_size(self, weight, self.value.shape == weight.shape)
        return self.value.to(weight.device, torch.float32) - weight


@dataclass(frozen=True, eq=False)
class Bound(Layer):
    """A base-dependent adapter with its weight: a full delta, made when it is read."""

    adapter: BaseDependent
    base: Tensor  # in the shape in which the model stores it
    reader: str = "peft"
    scale: float = 1.0
    lora: str = ""  # the name of the LoRA, for messages

    # mypy takes what the base class declares for a variable; here it follows from the weight
    @property
    def layout(self) -> Layout:  # type: ignore[override]
        if self.base.ndim == 1:
            return "vector"
        return "conv" if self.base.ndim > 2 else self.adapter.layout

    # as of layout
    @property
    def kernel(self) -> tuple[int, ...]:  # type: ignore[override]
        return tuple(self.base.shape[2:])

    # as of layout
    @property
    def key(self) -> str:  # type: ignore[override]
        return self.adapter.key

    @property
    def rank(self) -> int:
        return self.adapter.delta.rank if isinstance(self.adapter, Dora) else min(self.matrix_shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        if self.stored_in_out:
            return self.base.shape[1], self.base.shape[0]
        return self.base.shape[0], math.prod(self.base.shape[1:])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.adapter.tensors, self.base)

    def rows(self, device: torch.device | None) -> Rows:
        base = self.base.to(device=device, dtype=torch.float32)
        change = self.adapter.change(base.T if self.stored_in_out else base, self.reader)
        matrix = change.reshape(self.matrix_shape)
        # a sum shows NaN and infinity for the price of reading; one that overflows is looked at again
        if not (math.isfinite(float(matrix.sum())) or bool(torch.isfinite(matrix).all())):
            raise MergeError(
                f"{self.key} of {self.lora} ({self.adapter.kind}) comes to NaN or infinity; its weight in "
                "the base model is damaged, or the file is"
            )

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            return torch.mul(matrix[index], self.scale, out=out)

        return read


def check_size(adapter: BaseDependent, weight: Tensor, fits: bool) -> None:
    if not fits:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in adapter.tensors)
        raise IncompatibleLoraError(
            f"{adapter.key} is a {adapter.kind} of {shapes}, which does not fit the base model's weight "
            f"{tuple(weight.shape)}; it was made for another model"
        )
