"""No NaN out of numbers: what float32 cannot hold is refused before it is merged, with its layer and LoRA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from ..adapters import Bound
from ..errors import MergeError
from ..lora import Layer, Lora
from .spaces import AlignedLayer

_SAFE = 1e30  # no sum, mean or rescaling of a merge takes this over the largest float32
_LARGEST = 1e35  # of an entry of a delta times its weight

_bounds: WeakKeyDictionary[Layer, float] = WeakKeyDictionary()


def refuse_overflow(stacks: Sequence[AlignedLayer], scale: float, loras: Sequence[Lora]) -> None:
    """Refuse layers whose factors are finite and their product is not.

    The product of the factors' norms bounds every entry, which settles it for all but absurd files; norms are
    taken once for each layer of a LoRA. Adapters that need the base model are checked when they are computed.

    Raises:
        MergeError: naming the layer and the LoRA.
    """
    for stack in stacks:
        for part, weight in zip(stack.parts, stack.weights, strict=True):
            if not bound_of(part) * abs(weight * scale) < _SAFE:
                _check_entries(stack.name, part, weight * scale, loras)


def bound_of(part: Layer) -> float:
    """A number that no entry of the delta exceeds; 0 for those that are checked when they are computed."""
    known = _bounds.get(part)
    if known is None:
        known = 0.0 if isinstance(part, Bound) else abs(part.scale) * _product_of_norms(part)
        _bounds[part] = known
    return known


def _product_of_norms(part: Layer) -> float:
    bound = 1.0
    for tensor in part.tensors:
        if tensor.dtype == torch.float16:  # the largest it can hold, times the root of how many there are
            bound *= 65504 * math.sqrt(tensor.numel())
        else:
            flat = tensor.to(torch.float32).flatten()
            bound *= math.sqrt(float(torch.dot(flat, flat)))  # several times as fast as torch's norm
    return bound


def _check_entries(name: str, part: Layer, factor: float, loras: Sequence[Lora]) -> None:
    largest = float(part.matrix().abs().max()) * abs(factor)
    if not largest < _LARGEST:
        owner = next((lora.name for lora in loras if lora.layers.get(name) is part), "a LoRA")
        raise MergeError(
            f"{name} of {owner} comes to NaN or infinity at the weight {factor:g}: its factors or its alpha "
            "are too large; the file is damaged, or the weight is"
        )
