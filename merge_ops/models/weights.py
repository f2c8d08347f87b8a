"""Adding a merge to weights in place, with exact restore."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError
from ..merged import Merged

FindModule = Callable[[str], nn.Module | None]


class Patch:
    """A merge that has been added to a model's weights. Use it as a context manager, or call ``restore``.

    The original weights are kept in CPU memory and put back bit for bit. ``matched`` and ``unmatched`` name
    the layers of the merge that the model has and has not.
    """

    def __init__(self, find: FindModule, merged: Merged, strength: float = 1.0) -> None:
        self._find = find
        self._originals: dict[str, Tensor] = {}
        self.matched: tuple[str, ...] = ()
        self.unmatched: tuple[str, ...] = ()
        self.replace(merged, strength)

    def replace(self, merged: Merged, strength: float = 1.0) -> None:
        """Take the present merge out and add another one, without reading any file again.

        Raises:
            IncompatibleLoraError: if no layer, or a layer of another shape, is found; the weights are then as
                they were before the call.
        """
        weights = {name: _weight(found) for name in merged.layers if (found := self._find(name)) is not None}
        _check(merged, weights)
        self.restore()
        self.matched = tuple(weights)
        self.unmatched = tuple(name for name in merged.layers if name not in weights)
        try:
            for name, weight in weights.items():
                self._add(name, weight, merged.delta(name, device=weight.device) * strength)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the original weights back; calling it again does nothing."""
        with torch.no_grad():
            for name, original in self._originals.items():
                _weight(self._find(name)).copy_(original)
        self._originals = {}

    def _add(self, name: str, weight: Tensor, delta: Tensor) -> None:
        with torch.no_grad():
            self._originals[name] = weight.to("cpu", copy=True)
            weight.copy_(weight.to(torch.float32) + delta.view(weight.shape))

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def _weight(module: nn.Module | None) -> Tensor:
    """The weight of a module; of the base layer where PEFT has wrapped it."""
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    if not isinstance(weight, Tensor):
        raise IncompatibleLoraError(f"{type(module).__name__} has no weight that a LoRA could be added to")
    return weight


def _check(merged: Merged, weights: dict[str, Tensor]) -> None:
    """Refuse before anything is changed: no layer in common, or a weight that cannot take its delta."""
    if not weights:
        shown = ", ".join(merged.layers[:3])
        raise IncompatibleLoraError(
            f"none of the {len(merged.layers)} merged layers is in this model (the first are {shown}); "
            "the LoRAs are for another base model"
        )
    for name, weight in weights.items():
        shape = merged.layer(name).template.weight_shape
        if not weight.is_floating_point() or weight.is_meta:
            state = "is not loaded (meta device)" if weight.is_meta else f"is quantised ({weight.dtype})"
            raise IncompatibleLoraError(f"the weight of {name} {state}; a merge cannot be added to it")
        if not _fits(shape, tuple(weight.shape)):
            raise IncompatibleLoraError(
                f"{name} has the shape {shape} in the LoRA and {tuple(weight.shape)} in the model; "
                "the LoRA is for another base model"
            )


def _fits(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Equal, or a 1 x 1 convolution against a linear layer."""
    same_matrix = delta[:2] == weight[:2] and math.prod(delta[2:]) == math.prod(weight[2:]) == 1
    return delta == weight or same_matrix
