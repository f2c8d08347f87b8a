"""Adding a merge to weights in place, with exact restore."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from ..architectures import guess
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

        Weights that the merge holds whole (heads, set weights) are put in place of the model's, whatever the
        strength.

        Raises:
            IncompatibleLoraError: if no layer, or a layer of another shape, is found; the weights are then as
                they were before the call.
        """
        names = dict.fromkeys((*merged.replaced, *merged.layers))
        modules = {name: found for name in names if (found := self._module(name)) is not None}
        check_fits(merged, modules)
        self.restore()
        self.matched = tuple(name for name in merged.layers if name in modules)
        self.unmatched = tuple(name for name in names if name not in modules)
        try:
            for name, module in modules.items():
                weight = parameter(module, name)
                self._put(name, weight, merged_weight(merged, name, module, weight, strength))
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the original weights back; calling it again does nothing."""
        with torch.no_grad():
            for name, original in reversed(self._originals.items()):
                module = self._module(name)
                if module is not None:
                    parameter(module, name).copy_(original)
        self._originals = {}

    def _module(self, name: str) -> nn.Module | None:
        return self._find(name.removesuffix(".bias"))

    def _put(self, name: str, weight: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            self._originals[name] = weight.to("cpu", copy=True)
            weight.copy_(value)

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


def attribute_of(layer: str) -> str:
    """The name of a layer's parameter in its module."""
    return "bias" if layer.endswith(".bias") else "weight"


def merged_weight(
    merged: Merged, name: str, module: nn.Module, weight: Tensor, strength: float = 1.0
) -> Tensor:
    """What becomes of ``weight``, the parameter of a layer: in float32 where a delta is added to it."""
    replacement = merged.replaced.get(name)
    before = weight.detach() if replacement is None else replacement.value.to(weight.device)
    if name not in merged.results:
        return before
    delta = merged.delta(name, device=weight.device) * strength
    delta = delta.T if is_turned(merged, name, module) else delta
    return before.to(torch.float32) + delta.reshape(weight.shape)


def parameter(module: nn.Module, layer: str) -> Tensor:
    """The weight of a module, or its bias for ``layer.bias``; of the base layer where PEFT has wrapped it.

    Raises:
        IncompatibleLoraError: if it has none.
    """
    name = attribute_of(layer)
    found = getattr(owner_of(module), name, None)
    if not isinstance(found, Tensor):
        raise IncompatibleLoraError(
            f"{layer} is a {type(module).__name__} without a {name} that a LoRA could be added to"
        )
    return found


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
        found = guess(merged.loras[0])
        title = f" ({found.title})" if found else ""
        hint = (
            f", or name its layers as its authors do: read them with load(path, architecture={found.name!r})"
            if found and found.structure == "original"
            else ""
        )
        raise IncompatibleLoraError(
            f"none of the {len(merged.layers)} merged layers is in this model (the first are {shown}); "
            f"the LoRAs are for another base model{title}{hint}"
        )
    for name, module in modules.items():
        weight = parameter(module, name)
        if not weight.is_floating_point() or weight.is_meta:
            state = "is not loaded (meta device)" if weight.is_meta else f"is quantised ({weight.dtype})"
            raise IncompatibleLoraError(f"the weight of {name} {state}; a merge cannot be added to it")
        if name in merged.results:
            shape = merged.layer(name).template.weight_shape
            _check_shape(name, shape[::-1] if is_turned(merged, name, module) else shape, weight)
        if name in merged.replaced:
            _check_shape(name, tuple(merged.replaced[name].value.shape), weight)


def _check_shape(name: str, shape: tuple[int, ...], weight: Tensor) -> None:
    if not _fits(shape, tuple(weight.shape)):
        raise IncompatibleLoraError(
            f"{name} has the shape {shape} in the LoRA and {tuple(weight.shape)} in the model; "
            "the LoRA is for another base model"
        )


def _fits(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Equal, or a 1 x 1 convolution against a linear layer."""
    same_matrix = delta[:2] == weight[:2] and math.prod(delta[2:]) == math.prod(weight[2:]) == 1
    return delta == weight or same_matrix
