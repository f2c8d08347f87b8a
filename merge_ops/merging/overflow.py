"""Layers too large for float32 are refused before they are merged, instead of becoming NaN or infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import MergeError
from ..lora import Layer, Lora
from .align import AlignedLayer

_SAFE = 1e30  # no sum, mean or rescaling in a merge takes this beyond the largest float32
_LARGEST = 1e35  # allowed for an entry of a delta times its weight


def refuse_overflow(aligned: Sequence[AlignedLayer], scale: float, loras: Sequence[Lora]) -> None:
    """Refuse layers whose factors are finite while their product is not.

    The product of the factors' norms bounds every entry, which clears all but absurd files; the layer keeps
    its bound. Adapters that need the base model are checked when they are computed.

    Raises:
        MergeError: naming the layer and the LoRA.
    """
    for layer in aligned:
        after = layer.added or layer
        pairs = {id(part): (part, weight) for each in (layer, after)
                 for part, weight in zip(each.parts, each.weights, strict=True)}  # fmt: skip
        for part, weight in pairs.values():
            if not _bound_entries(part) * abs(weight * scale) < _SAFE:
                _check_entries(layer.name, part, weight * scale, loras)


def refuse_infinity(name: str, merged: Tensor, scale: float) -> None:
    """Refuse rows of a merged delta that are not finite, or are not once ``scale`` is multiplied in.

    Raises:
        MergeError: naming the layer.
    """
    if merged.numel() and not float(merged.abs().max()) * abs(scale) <= torch.finfo(torch.float32).max:
        raise MergeError(
            f"{name} becomes NaN or infinity: what an adapter changes in the base model's weight is too "
            "large at these weights; lower them, or see whether the file or the base model is damaged"
        )


def _bound_entries(part: Layer) -> float:
    """A number that no entry of the delta exceeds; 0 for those that are checked when they are computed."""
    if part.is_checked_when_read:
        return 0.0
    key = ("bound", *part.versions)
    if key not in part.measured:
        part.measured[key] = abs(part.scale) * _product_of_norms(part)
    return part.measured[key]


def _product_of_norms(part: Layer) -> float:
    bound = 1.0
    for tensor in part.tensors:
        if tensor.dtype == torch.float16:  # its largest value, times the square root of the number of entries
            bound *= 65504 * math.sqrt(tensor.numel())
        else:
            flat = tensor.to(torch.float32).flatten()
            bound *= math.sqrt(float(torch.dot(flat, flat)))  # several times faster than torch's norm
    return bound


def _check_entries(name: str, part: Layer, factor: float, loras: Sequence[Lora]) -> None:
    largest = float(part.matrix().abs().max()) * abs(factor)
    if not largest < _LARGEST:
        owner = next((lora.name for lora in loras if lora.layers.get(name) is part), "a LoRA")
        raise MergeError(
            f"{name} of {owner} becomes NaN or infinity at weight {factor:g}: its factors or its alpha are "
            "too large; the file is damaged, or the weight is wrong"
        )
