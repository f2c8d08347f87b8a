"""Whether a merge fits a model: refused before anything is changed."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from ..errors import IncompatibleLoraError
from ..lora import WholeWeight
from ..merging.merged import Merged
from ..names.recognise import guess
from .parameters import EXPERT, is_turned, owner_of, parameter


def check_fits(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse before anything is changed: no layer in common, or a weight that cannot take its delta."""
    if not modules:
        names = (*merged.layers, *merged.ia3, *merged.whole_weights)
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
        if name in merged.layers:
            shape = merged.layer(name).template.weight_shape
            _check_shape(name, shape[::-1] if is_turned(merged, name, module) else shape, weight)
        if name in merged.whole_weights:
            _check_whole(name, merged.whole_weights[name], weight)
    _check_experts(merged, modules)
    _check_ties(merged, modules)


def _check_whole(name: str, whole: WholeWeight, weight: Tensor) -> None:
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
    counts = Counter(found.group("module", "parameter") for n in modules if (found := EXPERT.fullmatch(n)))
    for name, module in modules.items():
        if (found := EXPERT.fullmatch(name)) and found["expert"] == "0":
            whole = getattr(owner_of(module), found["parameter"])
            count = counts[found.group("module", "parameter")]
            if all(each is None for each in merged.request.blocks) and count != whole.shape[0]:
                raise IncompatibleLoraError(
                    f"{name[:-3]} has {whole.shape[0]} experts in the model and {count} in the LoRA; "
                    "the LoRA is for another base model"
                )


def _check_ties(merged: Merged, modules: dict[str, nn.Module]) -> None:
    """Refuse different values for two names of one weight, as of tied embeddings."""
    seen: dict[int, str] = {}
    for name in merged.whole_weights:
        if name in modules:
            other = seen.setdefault(parameter(modules[name], name).data_ptr(), name)
            a, b = merged.whole_weights[other], merged.whole_weights[name]
            if a.rows != b.rows or a.value.shape != b.value.shape or not torch.equal(a.value, b.value):
                raise IncompatibleLoraError(
                    f"{other} and {name} are one weight in this model, and the merge holds different values "
                    "for them; untie them in the model first"
                )


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
