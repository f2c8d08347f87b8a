"""The parameter of a layer in its module, and what a merge makes of it."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..adapters import Ia3
from ..errors import IncompatibleLoraError
from ..lora import WholeWeight
from ..merging.merged import Merged

EXPERT = re.compile(r"(?P<module>.+)\.(?P<parameter>[^.]+)\[(?P<expert>\d+)\]")


def owner_of(module: nn.Module) -> nn.Module:
    """What holds the weight of a module: itself, or the base layer that PEFT has wrapped."""
    base = getattr(module, "base_layer", module)
    return base if isinstance(base, nn.Module) else module


def module_of(layer: str) -> str:
    """The name of a layer's module: without ``.bias``, or without the parameter and number of an expert."""
    expert = EXPERT.fullmatch(layer)
    return expert["module"] if expert else layer.removesuffix(".bias")


def attribute_of(layer: str) -> str:
    """The name of a layer's parameter in its module."""
    return "bias" if layer.endswith(".bias") else "weight"


def merged_weight(
    merged: Merged, name: str, module: nn.Module, weight: Tensor, strength: float = 1.0
) -> Tensor:
    """What becomes of ``weight``, the parameter of a layer: in float32 where it is changed."""
    replacement = merged.whole_weights.get(name)
    before = weight.detach() if replacement is None else _with_rows(weight, replacement).to(weight.device)
    if name in merged.ia3:
        return _scaled(before, merged.ia3[name], module, strength)
    if name not in merged.layers:
        return before
    delta = merged.delta(name, device=weight.device) * strength
    delta = delta.T if is_turned(merged, name, module) else delta
    return before.to(torch.float32) + delta.reshape(weight.shape)


def parameter(module: nn.Module, layer: str) -> Tensor:
    """The weight of a module, or its bias for ``layer.bias``; of the base layer where PEFT has wrapped it.

    For ``layer.name[2]`` it is the matrix of expert 2 in the parameter ``name``.

    Raises:
        IncompatibleLoraError: if it has none.
    """
    expert = EXPERT.fullmatch(layer)
    name = expert["parameter"] if expert else attribute_of(layer)
    found = getattr(owner_of(module), name, None)
    if expert and isinstance(found, Tensor) and found.ndim == 3 and int(expert["expert"]) < found.shape[0]:
        return found.detach()[int(expert["expert"])]
    if expert or not isinstance(found, Tensor):
        raise IncompatibleLoraError(
            f"{layer} is a {type(module).__name__} without a {name} that a LoRA could be added to"
        )
    return found


def is_turned(merged: Merged, name: str, module: nn.Module) -> bool:
    """True if the module stores its weight the other way round than the adapter's file says.

    PEFT keeps one ``fan_in_fan_out`` for a whole adapter, so where linear layers and transformers' Conv1D
    (which stores (in, out)) are mixed, the flag is wrong for one of them; the module itself knows.
    """
    if EXPERT.fullmatch(name):
        return bool(getattr(module, "is_transposed", False))
    layout = merged.layer(name).template.layout
    return layout in ("linear", "fan_in_fan_out") and (layout == "fan_in_fan_out") != _stores_in_out(module)


def _scaled(weight: Tensor, factors: Ia3, module: nn.Module, strength: float) -> Tensor:
    """The weight with its rows or columns scaled; of a Conv1D, which stores (in, out), turned."""
    whole = weight.detach().to(torch.float32)
    turned = whole.ndim == 2 and _stores_in_out(module)
    change = factors.change(whole.T if turned else whole, "peft") * strength
    return whole + (change.T if turned else change)


def _stores_in_out(module: nn.Module) -> bool:
    return type(owner_of(module)).__name__ == "Conv1D"


def has_bias(module: nn.Module) -> bool:
    """False for a layer without one."""
    return getattr(owner_of(module), "bias", None) is not None


def _with_rows(weight: Tensor, whole: WholeWeight) -> Tensor:
    """The whole weight that is put in place: with ``rows`` the model's, with these rows exchanged."""
    if not whole.rows:
        return whole.value
    changed = weight.detach().clone()
    changed[list(whole.rows)] = whole.value.to(changed)
    return changed
