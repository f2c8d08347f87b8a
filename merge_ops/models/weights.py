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
        modules = {name: found for name in merged.layers if (found := self._find(name)) is not None}
        check_fits(merged, modules)
        self.restore()
        self.matched = tuple(modules)
        self.unmatched = tuple(name for name in merged.layers if name not in modules)
        try:
            for name, module in modules.items():
                weight = weight_of(module)
                delta = merged.delta(name, device=weight.device) * strength
                self._add(name, weight, delta.T if is_turned(merged, name, module) else delta)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the original weights back; calling it again does nothing."""
        with torch.no_grad():
            for name, original in reversed(self._originals.items()):
                weight_of(self._find(name)).copy_(original)
        self._originals = {}

    def _add(self, name: str, weight: Tensor, delta: Tensor) -> None:
        with torch.no_grad():
            self._originals[name] = weight.to("cpu", copy=True)
            weight.copy_(weight.to(torch.float32) + delta.reshape(weight.shape))

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def owner_of(module: nn.Module) -> nn.Module:
    """What holds the weight of a module: itself, or the base layer that PEFT has wrapped."""
    base = getattr(module, "base_layer", module)
    return base if isinstance(base, nn.Module) else module


def weight_of(module: nn.Module | None) -> Tensor:
    """The weight of a module; of the base layer where PEFT has wrapped it."""
    weight = None if module is None else getattr(owner_of(module), "weight", None)
    if not isinstance(weight, Tensor):
        raise IncompatibleLoraError(f"{type(module).__name__} has no weight that a LoRA could be added to")
    return weight


def is_turned(merged: Merged, name: str, module: nn.Module) -> bool:
    """True if the module stores its weight the other way round than the adapter's file says.

    PEFT keeps one ``fan_in_fan_out`` for a whole adapter, so where linear layers and transformers' Conv1D
    (which stores (in, out)) are mixed, the flag is wrong for one of them; the module itself knows.
    """
    layout = merged.layer(name).template.layout
    stores_in_out = type(owner_of(module)).__name__ == "Conv1D"
    return layout in ("linear", "fan_in_fan_out") and (layout == "fan_in_fan_out") != stores_in_out


def check_fits(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse before anything is changed: no layer in common, or a weight that cannot take its delta."""
    if not modules:
        shown = ", ".join(merged.layers[:3])
        raise IncompatibleLoraError(
            f"none of the {len(merged.layers)} merged layers is in this model (the first are {shown}); "
            "the LoRAs are for another base model"
        )
    for name, module in modules.items():
        weight, shape = weight_of(module), merged.layer(name).template.weight_shape
        if not weight.is_floating_point() or weight.is_meta:
            state = "is not loaded (meta device)" if weight.is_meta else f"is quantised ({weight.dtype})"
            raise IncompatibleLoraError(f"the weight of {name} {state}; a merge cannot be added to it")
        expected = shape[::-1] if is_turned(merged, name, module) else shape
        if not _fits(expected, tuple(weight.shape)):
            raise IncompatibleLoraError(
                f"{name} has the shape {expected} in the LoRA and {tuple(weight.shape)} in the model; "
                "the LoRA is for another base model"
            )


def _fits(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Equal, or a 1 x 1 convolution against a linear layer."""
    same_matrix = delta[:2] == weight[:2] and math.prod(delta[2:]) == math.prod(weight[2:]) == 1
    return delta == weight or same_matrix
