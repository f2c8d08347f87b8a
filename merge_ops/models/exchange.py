"""Exchanging the weights of a model as objects: nothing is written to, so putting them back is exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError, MergeError
from ..merging.merged import Merged
from .fits import check_fits
from .parameters import attribute_of, merged_weight, module_of, owner_of

Stamp = tuple[int, int, torch.dtype, torch.device]


class Modules:
    """The modules of a model of transformers by the names of layers.

    A layer may be spelled with or without the prefix of the base model (``model.``, ``transformer.``,
    ``bert.``); a ``PeftModel`` is looked into.
    """

    def __init__(self, model: nn.Module) -> None:
        unwrap: Any = getattr(model, "get_base_model", None)
        inner: nn.Module = model if unwrap is None else unwrap()
        self._prefix = f"{getattr(inner, 'base_model_prefix', '')}."
        self.by_path = dict(inner.named_modules())

    def path(self, layer: str) -> str | None:
        """The path of the layer's module, bias or expert; None if the model has no such module."""
        module = module_of(layer)
        spellings = (module, self._prefix + module, module.removeprefix(self._prefix))
        found = next((name for name in spellings if name in self.by_path), None)
        return None if found is None else found + layer[len(module) :]

    def find(self, layer: str) -> nn.Module | None:
        """The layer's module."""
        path = self.path(layer)
        return None if path is None else self.module(path)

    def module(self, path: str) -> nn.Module:
        """The module of a path that ``path`` gave."""
        found: nn.Module = self.by_path[module_of(path)]
        return found

    def paths(self, layers: Iterable[str]) -> dict[str, str]:
        """Layer to path, for layers that all have modules of their own.

        Raises:
            IncompatibleLoraError: naming a layer that has no module, or two that have the same one.
        """
        found: dict[str, str] = {}
        taken: dict[str, str] = {}
        for layer in layers:
            path = self.path(layer)
            if path is None:
                raise IncompatibleLoraError(
                    f"the model has no module for the layer {layer}; the LoRA is for another base model"
                )
            if path in taken:
                raise IncompatibleLoraError(f"{taken[path]} and {layer} are the same module of the model")
            taken[path] = layer
            found[layer] = path
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Patched:
    """Weights with a merge in them, by module path, and what the weights were when they were made."""

    weights: dict[str, nn.Parameter]
    stamps: dict[str, Stamp]


class Exchange:
    """The weights that a model has, as it is when this is made, and others in their places for a while."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = Modules(model)
        self._places: dict[str, tuple[nn.Module, Tensor]] = {}
        for path, module in self.modules.by_path.items():
            owner = owner_of(module)
            for place in (path, f"{path}.bias"):
                if isinstance(weight := getattr(owner, attribute_of(place), None), Tensor):
                    self._places[place] = owner, weight
        self._inside: Patched | None = None

    def weight(self, layer: str) -> Tensor | None:
        """The model's own weight of a layer; None if it has none."""
        path = self.modules.path(layer)
        return self._places[path][1].detach() if path in self._places else None

    def size(self, paths: Iterable[str]) -> int:
        """Bytes of the weights of these modules."""
        return sum(self._places[path][1].nbytes for path in paths)

    def check(self, paths: Iterable[str]) -> None:
        """Refuse layers whose parameter cannot be exchanged as a whole.

        Raises:
            IncompatibleLoraError: naming the layer.
        """
        for path in paths:
            if path not in self._places:
                raise IncompatibleLoraError(
                    f"{path} is one matrix of a larger parameter, or a module without a weight; a pool "
                    "exchanges whole weights"
                )

    def patched(self, merged: Merged) -> Patched:
        """New weights with the merge added; those of the model stay as they are.

        The layers of the merge are called by module paths.
        """
        names = dict.fromkeys((*merged.whole_weights, *merged.layers, *merged.ia3))
        modules = {path: self.modules.module(path) for path in names}
        check_fits(merged, modules)
        weights = {}
        for path, module in modules.items():
            weight = self._places[path][1]
            weights[path] = as_parameter(merged_weight(merged, path, module, weight), weight)
        return Patched(weights, {path: self._stamp(path) for path in weights})

    def is_fresh(self, patched: Patched) -> bool:
        """False if the model was moved, cast or trained since."""
        return all(stamp == self._stamp(path) for path, stamp in patched.stamps.items())

    def put_in(self, patched: Patched) -> None:
        """Give the modules these weights; if one cannot be given, none is."""
        for path in patched.weights:
            owner, weight = self._places[path]
            if getattr(owner, attribute_of(path)) is not weight:
                raise MergeError(
                    f"somebody else has replaced the weight of {path} in the model; make a new pool for it"
                )
        self._inside = patched
        for path, weight in patched.weights.items():
            setattr(self._places[path][0], attribute_of(path), weight)

    def put_back(self) -> None:
        """Give the modules their own weights again."""
        for path in self._inside.weights if self._inside else ():
            owner, weight = self._places[path]
            setattr(owner, attribute_of(path), weight)
        self._inside = None

    def _stamp(self, path: str) -> Stamp:
        weight = self._places[path][1]
        version = 0 if weight.is_inference() else weight._version
        return weight.data_ptr(), version, weight.dtype, weight.device


def as_parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    """The value, rounded once to the dtype of the weight in whose place it goes; takes no gradient."""
    with torch.inference_mode(False), torch.no_grad():
        return nn.Parameter(value.to(like.dtype, copy=True), requires_grad=False)
