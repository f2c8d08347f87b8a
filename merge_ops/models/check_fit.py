"""Checking that a merge fits a model, before anything is changed."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError
from ..lora import WholeWeight
from ..merging.merged import Merged
from ..merging.misfits import explain_misfit, find_misfits, refuse_most
from ..names.recognise import guess
from .parameters import EXPERT, is_transposed, owner_of, parameter, stores_in_out


def check_fit(merged: Merged, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Refuse a merge that shares no layer with the model, or a weight that cannot take any delta.

    Args:
        merged: the merge.
        modules: the model's modules by layer name, for those layers that the model has.

    Returns:
        Why layers must be left out, by name: those whose weight has another shape, unless they are most.

    Raises:
        IncompatibleLoraError: naming a layer and both shapes, or the likely base model.
    """
    if not modules:
        raise IncompatibleLoraError(_nothing_fits(merged))
    misfits: dict[str, str] = {}
    for name, module in modules.items():
        weight = parameter(module, name)
        if not weight.is_floating_point() or weight.is_meta:
            state = "is not loaded (meta device)" if weight.is_meta else f"is quantised ({weight.dtype})"
            raise IncompatibleLoraError(f"the weight of {name} {state}, so a merge cannot be added to it")
        reason = _misfit(merged, name, module, weight)
        if reason is not None:
            misfits[name] = reason
    refuse_most(" and ".join(lora.name for lora in merged.loras[:3]), misfits, modules)
    modules = {name: module for name, module in modules.items() if name not in misfits}
    _check_experts(merged, modules)
    _check_ties(merged, modules)
    return misfits


def _nothing_fits(merged: Merged) -> str:
    names = (*merged.layers, *merged.ia3, *merged.whole_weights)
    architecture = guess(merged.loras[0])
    title = f" ({architecture.title})" if architecture else ""
    hint = (
        f", or they use the authors' layer names: load them with architecture={architecture.name!r}"
        if architecture and architecture.structure == "original"
        else ""
    )
    return (
        f"none of the {len(names)} merged layers is in this model (the first are {', '.join(names[:3])}); "
        f"the LoRAs are for another base model{title}{hint}"
    )


def _misfit(merged: Merged, name: str, module: nn.Module, weight: Tensor) -> str | None:
    """Why a layer cannot be added to its weight; None if it can."""
    shape = tuple(weight.shape)
    if name in merged.ia3:
        turned = shape[::-1] if weight.ndim == 2 and stores_in_out(module) else shape
        return find_misfits({name: merged.ia3[name]}, {name: turned}).get(name)
    if name in merged.layers:
        layer = merged.layer(name)
        own = layer.template.weight_shape
        turned = own[::-1] if is_transposed(merged, name, module) else own
        if layer.padded_to and layer.padded_to != shape:
            raise IncompatibleLoraError(
                f"{name} widens the model's weight from {shape} to {layer.padded_to}, as control LoRAs do; "
                "save the merge with format='diffusers' and load it with pipe.load_lora_weights"
            )
        if not _same_matrix(turned, shape):
            return explain_misfit(turned, shape)
    if name in merged.whole_weights:
        return _misfit_of_whole(name, merged.whole_weights[name], shape)
    return None


def _misfit_of_whole(name: str, whole: WholeWeight, shape: tuple[int, ...]) -> str | None:
    """Refuse tokens that the model does not have; return why another whole weight does not fit."""
    own = tuple(whole.value.shape)
    needed = max(whole.rows) + 1 if whole.rows else own[0]
    same_width = len(own) == len(shape) == 2 and own[1] == shape[1]
    if whole.is_vocabulary and same_width and (needed > shape[0] or not whole.rows):
        if needed != shape[0]:
            raise IncompatibleLoraError(
                f"{name} has {shape[0]} tokens in the model, and the merge holds "
                f"{'one at index ' + str(needed - 1) if whole.rows else needed}; "
                f"call model.resize_token_embeddings({needed}) first"
            )
    elif not (whole.rows and same_width) and not _same_matrix(own, shape):
        return explain_misfit(own, shape)
    return None


def _check_experts(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse a merge with a different number of experts than the model: it is for another model."""
    counts = Counter(match.group("module", "parameter") for n in modules if (match := EXPERT.fullmatch(n)))
    for name, module in modules.items():
        if (match := EXPERT.fullmatch(name)) and match["expert"] == "0":
            stack = getattr(owner_of(module), match["parameter"])  # (experts, ...)
            count = counts[match.group("module", "parameter")]
            if all(each is None for each in merged.request.blocks) and count != stack.shape[0]:
                raise IncompatibleLoraError(
                    f"{name[:-3]} has {stack.shape[0]} experts in the model and {count} in the LoRA; "
                    "the LoRA is for another base model"
                )


def _check_ties(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse different values for two names of one weight, such as a tied embedding."""
    seen: dict[int, str] = {}
    for name in merged.whole_weights:
        if name in modules:
            other = seen.setdefault(parameter(modules[name], name).data_ptr(), name)
            a, b = merged.whole_weights[other], merged.whole_weights[name]
            if a.rows != b.rows or a.value.shape != b.value.shape or not torch.equal(a.value, b.value):
                raise IncompatibleLoraError(
                    f"{other} and {name} share one weight in this model, but the merge holds different "
                    "values for them; untie them in the model first"
                )


def _same_matrix(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Return True for equal shapes, and for a 1 x 1 convolution against a linear layer."""
    one_pixel = delta[:2] == weight[:2] and math.prod(delta[2:]) == math.prod(weight[2:]) == 1
    return delta == weight or one_pixel
