"""What a layer of a LoRA changes: a weight of the model, or a part of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ...merge_ops.lora import Lora

Shapes = Mapping[str, tuple[int, ...]]  # key of a weight -> its shape
_DENOISER = "diffusion_model."


class Part(NamedTuple):
    """A slice of a weight, as ``torch.narrow`` takes it: dimension, first index, and how many."""

    dim: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Target:
    """A weight, or a part of one. Targets are equal if all three fields are; functions compare by identity.

    ``function`` reorders the rows of a delta into those of the weight.
    """

    key: str  # the weight's name in the model's state dict
    part: Part | None = None  # None: all of it
    function: Callable[[torch.Tensor], torch.Tensor] | None = None

    @classmethod
    def from_comfyui(cls, entry: str | tuple[Any, ...]) -> Target:
        """Read a value of ComfyUI's key maps: ``key``, or ``(key, (dim, start, length)[, function])``."""
        if isinstance(entry, str):
            return cls(entry)
        key, part, *function = entry
        return cls(key, None if part is None else Part(*part), *function)

    def to_comfyui(self) -> str | tuple[Any, ...]:
        """Write the target as a key for ``ModelPatcher.add_patches``."""
        part = None if self.part is None else tuple(self.part)
        if self.function is not None:
            return self.key, part, self.function
        return self.key if part is None else (self.key, part)

    @property
    def is_whole(self) -> bool:
        """True if the target is all of the weight, with its rows in order."""
        return self.part is None and self.function is None

    @property
    def is_denoiser(self) -> bool:
        """True for a weight of the diffusion model, False for one of a text encoder."""
        return self.key.startswith(_DENOISER)

    @property
    def weight(self) -> Target:
        """The weight that a bias belongs to; a weight itself."""
        if not self.key.endswith(".bias"):
            return self
        return replace(self, key=f"{self.key.removesuffix('.bias')}.weight")

    @property
    def bias(self) -> Target:
        """The bias that belongs to the weight, or the same part of it."""
        return replace(self, key=f"{self.key.removesuffix('.weight')}.bias")

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the weight, or of the part."""
        shape = shapes[self.key]
        if self.part is None:
            return shape
        dim, _, length = self.part
        return (*shape[:dim], length, *shape[dim + 1 :])

    def rows(self, shapes: Shapes) -> tuple[int, int] | None:
        """Return the first row and the row after the last.

        None if a function reorders the rows, or if the part is cut along another dimension.
        """
        if self.is_whole:
            return 0, shapes[self.key][0] if shapes[self.key] else 1
        if self.part is None or self.function is not None or self.part.dim != 0:
            return None
        return self.part.start, self.part.start + self.part.length


@dataclass(frozen=True, slots=True)
class LoraTargets:
    """One LoRA with the targets of what the model has of it, by layer name."""

    lora: Lora
    layers: dict[str, Target]
    whole_weights: dict[str, Target]

    @classmethod
    def of(cls, lora: Lora, places: Mapping[str, Target]) -> LoraTargets:
        """Choose the places of what the LoRA holds, in their order."""
        layers = {name: target for name, target in places.items() if name in lora.layers}
        whole = {name: target for name, target in places.items() if name in lora.whole_weights}
        return cls(lora, layers, whole)
