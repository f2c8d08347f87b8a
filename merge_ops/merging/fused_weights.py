"""The weights of a base model, with those of fused modules of which it has the parts."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor

from ..lora import BaseWeights
from ..names.fused import parts_of


class FusedWeights:
    """The weights of a base model by layer: ``to_qkv`` is made from ``to_q``, ``to_k`` and ``to_v``."""

    def __init__(self, base: BaseWeights) -> None:
        self._base = base

    def __call__(self, layer: str) -> Tensor | None:
        """Return the weight of a layer, or None if the base model has neither it nor all of its parts."""
        weight = self._base(layer)
        if weight is not None:
            return weight
        parts = self.parts(layer)
        return torch.cat(list(parts.values())) if parts else None

    def parts(self, layer: str) -> dict[str, Tensor]:
        """Return the weights of all parts of a fused module by name, the upper rows first, or nothing."""
        for names in parts_of(layer):
            found = {name: weight for name in names if (weight := self._base(name)) is not None}
            if len(found) == len(names):
                return found
        return {}


class _ListedWeights(FusedWeights):
    """Such weights of a base model that knows what it has without reading it."""

    def __init__(self, base: BaseWeights, names: Container[str]) -> None:
        super().__init__(base)
        self._names = names

    def parts(self, layer: str) -> dict[str, Tensor]:
        """Return the weights of all parts, or nothing where the base model has the module itself."""
        return {} if layer in self._names else super().parts(layer)

    def __contains__(self, layer: object) -> bool:
        if not isinstance(layer, str):
            return False
        return layer in self._names or any(
            all(part in self._names for part in parts) for parts in parts_of(layer)
        )


def with_fused(base: BaseWeights | None) -> BaseWeights | None:
    """Return a base model's weights with those of fused modules."""
    if base is None:
        return None
    return _ListedWeights(base, base) if isinstance(base, Container) else FusedWeights(base)
