"""Checking that a merge fits a model, before anything is changed."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError
from ..lora import WholeWeight
from ..merging.merged import Merged
from ..names.recognise import guess
from .parameters import EXPERT, is_transposed, owner_of, parameter


def check_fit(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse a merge that shares no layer with the model, or a weight that cannot take its delta.

    Args:
        merged: the merge.
        modules: the model's modules by layer name, for those layers that the model has.

    Raises:
        IncompatibleLoraError: naming the layer and both shapes, or the likely base model.
    """
    if not modules:
        raise IncompatibleLoraError(_nothing_fits(merged))
    for name, module in modules.items():
        weight = parameter(module, name)
        if not weight.is_floating_point() or weight.is_meta:
            state = "is not loaded (meta device)" if weight.is_meta else f"is quantised ({weight.dtype})"
            raise IncompatibleLoraError(f"the weight of {name} {state}, so a merge cannot be added to it")
        if name in merged.layers:
            shape = merged.layer(name).template.weight_shape
            _check_shape(name, shape[::-1] if is_transposed(merged, name, module) else shape, weight)
        if name in merged.whole_weights:
            _check_whole(name, merged.whole_weights[name], weight)
    _check_experts(merged, modules)
    _check_ties(merged, modules)


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


def _check_whole(name: str, whole: WholeWeight, weight: Tensor) -> None:
    """Refuse a whole weight of another shape, and tokens that the model does not have."""
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


def _check_shape(name: str, shape: tuple[int, ...], weight: Tensor) -> None:
    if not _same_matrix(shape, tuple(weight.shape)):
        raise IncompatibleLoraError(
            f"{name} has shape {shape} in the LoRA and {tuple(weight.shape)} in the model; "
            "the LoRA is for another base model"
        )


def _same_matrix(delta: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Return True for equal shapes, and for a 1 x 1 convolution against a linear layer."""
    one_pixel = delta[:2] == weight[:2] and math.prod(delta[2:]) == math.prod(weight[2:]) == 1
    return delta == weight or one_pixel
