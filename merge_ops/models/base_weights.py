"""A model in memory as the base of a merge."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import IncompatibleLoraError
from ..lora import BaseWeights
from .diffusers import finder
from .parameters import parameter


def weights_of(target: Any) -> BaseWeights:
    """A function from a layer's name to its weight in a pipeline or a model of diffusers or transformers.

    Layers of a text model are named by their paths in it, as in a PEFT folder.

    Raises:
        IncompatibleLoraError: if ``target`` is neither.
    """
    find = finder(target)

    def weight(layer: str) -> Tensor | None:
        module = find(layer.removesuffix(".bias"))
        try:
            return None if module is None else parameter(module, layer).detach()
        except IncompatibleLoraError:
            return None

    return weight
