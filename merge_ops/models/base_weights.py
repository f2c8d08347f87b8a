"""Reading the base weights of a merge from a model in memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import IncompatibleLoraError
from ..lora import BaseWeights
from .diffusers import finder
from .parameters import parameter


def weights_of(target: Any) -> BaseWeights:
    """Return a function that maps a layer name to its weight in a diffusers or transformers model.

    Layers of a text model are named by their module paths, as in a PEFT folder.

    Raises:
        IncompatibleLoraError: if ``target`` is neither a pipeline nor a model.
    """
    find = finder(target)

    def weight(layer: str) -> Tensor | None:
        module = find(layer.removesuffix(".bias"))
        try:
            return None if module is None else parameter(module, layer).detach()
        except IncompatibleLoraError:
            return None

    return weight
