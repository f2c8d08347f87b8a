"""DoRA (arXiv:2402.09353): a layer of another kind, with the magnitudes of the weight's rows or columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layer, Layout
from .bound import check_size
from .kind import Kind
from .module import RawModule, numbers_of


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

    @property
    def alpha_scale(self) -> float | None:
        return self.delta.scale

    @property
    def configured_rank(self) -> int | None:
        return self.delta.configured_rank

    @property
    def rescales_base(self) -> bool:
        return True

    def fits(self, shape: tuple[int, ...]) -> bool:
        if self.delta.matrix_shape != (*shape[:1], math.prod(shape[1:])):
            return False
        return self.magnitude.shape[0] == shape[0] or self.magnitude.shape[1] in shape[1:2]

    def change(self, weight: Tensor, reader: str) -> Tensor:
        check_size(self, weight)
        delta = self.delta.matrix(weight.device)
        merged = weight + delta.reshape(weight.shape)
        by_rows = self.magnitude.shape[0] == weight.shape[0]
        measured = weight if by_rows and reader == "comfyui" else merged
        axes = [axis for axis in range(weight.ndim) if axis != (0 if by_rows else 1)]
        norm = measured.square().sum(axes, keepdim=True).sqrt_().add_(torch.finfo(torch.float32).eps)
        magnitude = self.magnitude.to(weight.device, torch.float32).reshape(norm.shape)
        return merged.mul_(magnitude / norm).sub_(weight)


def _dora(layer: Layer, module: RawModule) -> Dora:
    """Return the layer with the magnitudes of its module, brought to ``(out, 1)`` or ``(1, in)``."""
    from_peft = "peft_magnitude" in module.tensors
    magnitude = numbers_of(module, "peft_magnitude" if from_peft else "magnitude")
    if from_peft and "magnitude" in module.tensors:
        raise LoraFormatError(
            f"{module.stem} has two magnitudes, dora_scale and lora_magnitude_vector, of which each program "
            "reads one; keep that of the program that trained it"
        )
    sizes = [size for size in magnitude.shape if size != 1]
    if len(sizes) > 1 or magnitude.ndim == 0 or magnitude.numel() == 0:
        raise LoraFormatError(
            f"the magnitudes of {module.stem} have the shape {tuple(magnitude.shape)}, not one axis"
        )
    by_rows = from_peft or magnitude.ndim < 2 or magnitude.shape[0] != 1
    flat = magnitude.flatten()
    return Dora(layer, flat[:, None] if by_rows else flat[None], layer.layout, module.stem)


DORA = Kind(
    "DoRA",
    {
        ".dora_scale": "magnitude",
        **{
            f".lora_magnitude_vector{end}": "peft_magnitude"
            for end in ("", ".weight", ".default", ".default.weight")
        },
    },
    (Dora,),
    wrap=_dora,
    beside=("LoRA", "LoHa", "LoKr", "full difference"),
    extra=frozenset({"magnitude", "peft_magnitude"}),
    alone="the magnitudes of a DoRA without the factors they belong to",
)
