"""Adding a merge to weights in place, with exact restore."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from ..architectures import guess
from ..errors import IncompatibleLoraError
from ..kinds import Scaling
from ..merged import Merged
from ..types import Replacement

FindModule = Callable[[str], nn.Module | None]
_EXPERT = re.compile(r"(?P<module>.+)\.(?P<parameter>[^.]+)\[(?P<expert>\d+)\]")


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
        names = dict.fromkeys((*merged.replaced, *merged.layers, *merged.scaled))
        modules = {name: found for name in names if (found := self._module(name)) is not None}
        for name in [name for name in merged.scaled if name.endswith(".bias")]:
            if name in modules and not _has_bias(modules[name]):  # PEFT's factors are those of a bias too
                del names[name], modules[name]
        _check(merged, modules)
        self.restore()
        self.matched = tuple(name for name in (*merged.layers, *merged.scaled) if name in modules)
        self.unmatched = tuple(name for name in names if name not in modules)
        try:
            for name, weight in merged.replaced.items():
                if name in modules:
                    weight_now = parameter(modules[name], name)
                    self._put(name, weight_now, _with_rows(weight_now, weight))
            for name in self.matched:
                module = modules[name]
                weight_now = parameter(module, name)
                if name in merged.scaled:
                    self._put(name, weight_now, _scaled(weight_now, merged.scaled[name], module, strength))
                    continue
                delta = merged.delta(name, device=weight_now.device) * strength
                delta = delta.T if _is_turned(merged, name, module) else delta
                changed = weight_now.detach().to(torch.float32) + delta.reshape(weight_now.shape)
                self._put(name, weight_now, changed)
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Put the original weights back; calling it again does nothing."""
        with torch.no_grad():
            for name, original in self._originals.items():
                module = self._module(name)
                if module is not None:
                    parameter(module, name).copy_(original)
        self._originals = {}

    def _module(self, name: str) -> nn.Module | None:
        expert = _EXPERT.fullmatch(name)
        return self._find(expert["module"] if expert else name.removesuffix(".bias"))

    def _put(self, name: str, weight: Tensor, value: Tensor) -> None:
        with torch.no_grad():
            self._originals.setdefault(name, weight.to("cpu", copy=True))
            weight.copy_(value)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def parameter(module: nn.Module, layer: str) -> Tensor:
    """The weight of a module, or its bias for ``layer.bias``; of the base layer where PEFT has wrapped it.

    For ``layer.name[2]`` it is the matrix of expert 2 in the parameter ``name``.

    Raises:
        IncompatibleLoraError: if it has none.
    """
    expert = _EXPERT.fullmatch(layer)
    name = expert["parameter"] if expert else "bias" if layer.endswith(".bias") else "weight"
    found = getattr(getattr(module, "base_layer", module), name, None)
    if expert and isinstance(found, Tensor) and found.ndim == 3 and int(expert["expert"]) < found.shape[0]:
        return found.detach()[int(expert["expert"])]
    if expert or not isinstance(found, Tensor):
        raise IncompatibleLoraError(
            f"{layer} is a {type(module).__name__} without a {name} that a LoRA could be added to"
        )
    return found


def _is_turned(merged: Merged, name: str, module: nn.Module) -> bool:
    """True if the module stores its weight the other way round than the adapter's file says.

    PEFT keeps one ``fan_in_fan_out`` for a whole adapter, so where linear layers and transformers' Conv1D
    (which stores (in, out)) are mixed, the flag is wrong for one of them; the module itself knows.
    """
    if _EXPERT.fullmatch(name):
        return bool(getattr(module, "is_transposed", False))
    layout = merged.layer(name).template.layout
    return layout in ("linear", "fan_in_fan_out") and (layout == "fan_in_fan_out") != _stores_in_out(module)


def _check(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse before anything is changed: no layer in common, or a weight that cannot take its delta."""
    if not modules:
        names = (*merged.layers, *merged.scaled, *merged.replaced)
        shown = ", ".join(names[:3])
        found = guess(merged.loras[0])
        title = f" ({found.title})" if found else ""
        hint = (
            f", or name its layers as its authors do: read them with load(path, architecture={found.name!r})"
            if found and found.structure == "original"
            else ""
        )
        raise IncompatibleLoraError(
            f"none of the {len(names)} merged layers is in this model (the first are {shown}); "
            f"the LoRAs are for another base model{title}{hint}"
        )
    for name, module in modules.items():
        weight = parameter(module, name)
        if not weight.is_floating_point() or weight.is_meta:
            state = "is not loaded (meta device)" if weight.is_meta else f"is quantised ({weight.dtype})"
            raise IncompatibleLoraError(f"the weight of {name} {state}; a merge cannot be added to it")
        if name in merged.results:
            shape = merged.layer(name).template.weight_shape
            _check_shape(name, shape[::-1] if _is_turned(merged, name, module) else shape, weight)
        if name in merged.replaced:
            _check_whole(name, merged.replaced[name], weight)
    _check_experts(merged, modules)
    _check_ties(merged, modules)


def _check_whole(name: str, whole: Replacement, weight: Tensor) -> None:
    """Refuse a weight that does not fit, and tokens that the model does not have."""
    shape = tuple(whole.value.shape)
    needed = max(whole.rows) + 1 if whole.rows else shape[0]
    same_width = len(shape) == weight.ndim == 2 and shape[1] == weight.shape[1]
    if whole.is_vocabulary and same_width and (needed > weight.shape[0] or not whole.rows):
        if needed != weight.shape[0]:
            raise IncompatibleLoraError(
                f"{name} has {weight.shape[0]} tokens in the model, and the merge holds "
                f"{'one at index ' + str(needed - 1) if whole.rows else needed}; "
                f"call model.resize_token_embeddings({needed}) first"
            )
    elif not (whole.rows and same_width):
        _check_shape(name, shape, weight)


def _check_experts(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse a merge with fewer experts than the parameter has: it is of another model."""
    counts = Counter(found.group("module", "parameter") for n in modules if (found := _EXPERT.fullmatch(n)))
    for name, module in modules.items():
        if (found := _EXPERT.fullmatch(name)) and found["expert"] == "0":
            whole = getattr(getattr(module, "base_layer", module), found["parameter"])
            count = counts[found.group("module", "parameter")]
            if merged.blocks == [None] * len(merged.loras) and count != whole.shape[0]:
                raise IncompatibleLoraError(
                    f"{name[:-3]} has {whole.shape[0]} experts in the model and {count} in the LoRA; "
                    "the LoRA is for another base model"
                )


def _check_ties(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse different values for two names of one weight, as of tied embeddings."""
    seen: dict[int, str] = {}
    for name in merged.replaced:
        if name in modules:
            other = seen.setdefault(parameter(modules[name], name).data_ptr(), name)
            a, b = merged.replaced[other], merged.replaced[name]
            if a.rows != b.rows or a.value.shape != b.value.shape or not torch.equal(a.value, b.value):
                raise IncompatibleLoraError(
                    f"{other} and {name} are one weight in this model, and the merge holds different values "
                    "for them; untie them in the model first"
                )


def _scaled(weight: Tensor, factors: Scaling, module: nn.Module, strength: float) -> Tensor:
    """The weight with its rows or columns scaled; of a Conv1D, which stores (in, out), turned."""
    whole = weight.detach().to(torch.float32)
    turned = whole.ndim == 2 and _stores_in_out(module)
    change = factors.change(whole.T if turned else whole, "peft") * strength
    return whole + (change.T if turned else change)


def _stores_in_out(module: nn.Module) -> bool:
    return type(getattr(module, "base_layer", module)).__name__ == "Conv1D"


def _has_bias(module: nn.Module) -> bool:
    return getattr(getattr(module, "base_layer", module), "bias", None) is not None


def _with_rows(weight: Tensor, whole: Replacement) -> Tensor:
    """The whole weight that is put in place: with ``rows`` the model's, with these rows exchanged."""
    if not whole.rows:
        return whole.value
    changed = weight.detach().clone()
    changed[list(whole.rows)] = whole.value.to(changed)
    return changed


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
