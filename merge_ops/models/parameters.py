"""The parameter of a layer in its module, and its value with a merge applied."""

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
    """Return the module that holds the weight: the module itself, or the base layer that PEFT has wrapped."""
    base = getattr(module, "base_layer", module)
    return base if isinstance(base, nn.Module) else module


def module_of(layer: str) -> str:
    """Return the name of a layer's module: without ``.bias``, or without an expert's parameter and number."""
    expert = EXPERT.fullmatch(layer)
    return expert["module"] if expert else layer.removesuffix(".bias")


def attribute_of(layer: str) -> str:
    """Return the name of a layer's parameter in its module."""
    return "bias" if layer.endswith(".bias") else "weight"


def merged_weight(
    merged: Merged, name: str, module: nn.Module, weight: Tensor, strength: float = 1.0
) -> Tensor:
    """Return the new value of ``weight``, the parameter of a layer; in float32 where the merge changes it."""
    whole = merged.whole_weights.get(name)
    before = weight.detach() if whole is None else _with_rows(weight, whole).to(weight.device)
    if name in merged.ia3:
        return _with_ia3(before, merged.ia3[name], module, strength)
    if name not in merged.layers:
        return before
    delta = merged.delta(name, device=weight.device) * strength
    delta = delta.T if is_transposed(merged, name, module) else delta
    return before.to(torch.float32) + delta.reshape(weight.shape)


def parameter(module: nn.Module, layer: str) -> Tensor:
    """Return the weight of a module, or its bias for ``layer.bias``; PEFT wrappers are looked through.

    For ``layer.name[2]`` this is the matrix of expert 2 in the parameter ``name``.

    Raises:
        IncompatibleLoraError: if the module has no such parameter.
    """
    expert = EXPERT.fullmatch(layer)
    name = expert["parameter"] if expert else attribute_of(layer)
    value = getattr(owner_of(module), name, None)
    if expert and isinstance(value, Tensor) and value.ndim == 3 and int(expert["expert"]) < value.shape[0]:
        return value.detach()[int(expert["expert"])]
    if expert or not isinstance(value, Tensor):
        raise IncompatibleLoraError(
            f"{layer} is a {type(module).__name__} without a {name} that a LoRA could be added to"
        )
    return value


def is_transposed(merged: Merged, name: str, module: nn.Module) -> bool:
    """Return True if the module stores its weight transposed relative to the adapter's file.

    PEFT has one ``fan_in_fan_out`` flag for a whole adapter, so in a model that mixes linear layers with
    transformers' Conv1D, which stores (in, out), the flag is wrong for one of them. The module itself knows.
    """
    if EXPERT.fullmatch(name):
        return bool(getattr(module, "is_transposed", False))
    layout = merged.layer(name).template.layout
    return layout in ("linear", "fan_in_fan_out") and (layout == "fan_in_fan_out") != stores_in_out(module)


def _with_ia3(weight: Tensor, factors: Ia3, module: nn.Module, strength: float) -> Tensor:
    """Return the weight with rows or columns scaled by (IA)3; a Conv1D stores (in, out)."""
    before = weight.detach().to(torch.float32)
    transposed = before.ndim == 2 and stores_in_out(module)
    change = factors.change(before.T if transposed else before, "peft") * strength
    return before + (change.T if transposed else change)


def stores_in_out(module: nn.Module) -> bool:
    """Return True if the module keeps its weight as ``(in, out)``, as transformers' Conv1D does."""
    return type(owner_of(module)).__name__ == "Conv1D"


def has_bias(module: nn.Module) -> bool:
    """Return True if the module has a bias."""
    return getattr(owner_of(module), "bias", None) is not None


def _with_rows(weight: Tensor, whole: WholeWeight) -> Tensor:
    """Return the whole weight to use: with ``rows``, the model's weight with these rows replaced."""
    if not whole.rows:
        return whole.value
    changed = weight.detach().clone()
    changed[list(whole.rows)] = whole.value.to(changed)
    return changed
