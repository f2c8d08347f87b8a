"""Swapping the weights of a model as objects: nothing is written to, so swapping back is exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError, MergeError
from ..merging.merged import Merged
from .check_fit import check_fit
from .modules import Modules
from .parameters import attribute_of, merged_weight, owner_of

Stamp = tuple[int, int, torch.dtype, torch.device]


@dataclass(frozen=True, slots=True, eq=False)
class SwappedWeights:
    """New weights by module path, and the state of the original weights when these were computed."""

    weights: dict[str, nn.Parameter]
    stamps: dict[str, Stamp]


class WeightSwap:
    """Swaps merged weights into a model and its original weights back.

    The originals are the weights that the model has when this object is created.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = Modules(model)
        self._originals: dict[str, tuple[nn.Module, Tensor]] = {}  # path to owner and weight
        for module_path, module in self.modules.by_path.items():
            owner = owner_of(module)
            for path in (module_path, f"{module_path}.bias"):
                if isinstance(weight := getattr(owner, attribute_of(path), None), Tensor):
                    self._originals[path] = owner, weight
        self._inside: SwappedWeights | None = None

    def original(self, layer: str) -> Tensor | None:
        """Return the model's own weight of a layer, or None if it has none."""
        path = self.modules.path(layer)
        return self._originals[path][1].detach() if path in self._originals else None

    def size(self, paths: Iterable[str]) -> int:
        """Return the size of the original weights at these paths, in bytes."""
        return sum(self._originals[path][1].nbytes for path in paths)

    def check(self, paths: Iterable[str]) -> None:
        """Refuse layers whose parameter cannot be swapped as a whole.

        Raises:
            IncompatibleLoraError: naming the layer.
        """
        for path in paths:
            if path not in self._originals:
                raise IncompatibleLoraError(
                    f"{path} is one matrix of a larger parameter, or a module without a weight; a pool "
                    "swaps whole weights only"
                )

    def compute(self, merged: Merged) -> SwappedWeights:
        """Compute new weights with the merge added; the model itself stays unchanged.

        The layers of the merge must be named by module paths.

        Raises:
            IncompatibleLoraError: if a layer does not fit its module.
        """
        names = dict.fromkeys((*merged.whole_weights, *merged.layers, *merged.ia3))
        modules = {path: self.modules.module(path) for path in names}
        misfits = check_fit(merged, modules)
        modules = {path: module for path, module in modules.items() if path not in misfits}
        weights = {}
        for path, module in modules.items():
            original = self._originals[path][1]
            weights[path] = as_parameter(merged_weight(merged, path, module, original), original)
        return SwappedWeights(weights, {path: self._stamp(path) for path in weights})

    def is_current(self, swapped: SwappedWeights) -> bool:
        """Return False if the model has been moved, cast or trained since these weights were computed."""
        return all(stamp == self._stamp(path) for path, stamp in swapped.stamps.items())

    def put_in(self, swapped: SwappedWeights) -> None:
        """Give the modules these weights, or none of them if one cannot be given.

        Raises:
            MergeError: if other code has replaced a weight in the meantime.
        """
        for path in swapped.weights:
            owner, original = self._originals[path]
            if getattr(owner, attribute_of(path)) is not original:
                raise MergeError(
                    f"other code has replaced the weight of {path} in the model; create a new pool for it"
                )
        self._inside = swapped
        for path, weight in swapped.weights.items():
            setattr(self._originals[path][0], attribute_of(path), weight)

    def put_back(self) -> None:
        """Give the modules their original weights again."""
        for path in self._inside.weights if self._inside else ():
            owner, original = self._originals[path]
            setattr(owner, attribute_of(path), original)
        self._inside = None

    def _stamp(self, path: str) -> Stamp:
        weight = self._originals[path][1]
        version = 0 if weight.is_inference() else weight._version
        return weight.data_ptr(), version, weight.dtype, weight.device


def as_parameter(value: Tensor, original: Tensor) -> nn.Parameter:
    """Round a value once to the dtype of the weight that it replaces; the result takes no gradient."""
    with torch.inference_mode(False), torch.no_grad():
        return nn.Parameter(value.to(original.dtype, copy=True), requires_grad=False)
