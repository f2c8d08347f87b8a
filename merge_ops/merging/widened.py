"""Layers on a weight that is wider in some LoRAs: a control LoRA for Flux widens the model's input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

from ..adapters import Full
from ..formats.flux_control import is_input
from ..lora import Layer, Lora, LowRank

Shape = tuple[int, ...]


def widen_alike(loras: Sequence[Lora]) -> list[Lora]:
    """Give all LoRAs the same shape of each weight that one of them widens: the others have zeros there.

    A layer that is larger than its weight may become is left as it is, for the merge to refuse.
    """
    loras = [_with_control_input(lora, loras) for lora in loras]
    for name in sorted({name for lora in loras for name, layer in lora.layers.items() if layer.padded_to}):
        shapes = [lora.layers[name].padded_to for lora in loras if name in lora.layers]
        shape = tuple(map(max, zip(*filter(None, shapes), strict=False)))
        loras = [_with_layer(lora, name, shape) if name in lora.layers else lora for lora in loras]
    return loras


def widen(layer: Layer, shape: Shape) -> Layer:
    """Return the layer on a weight that is padded with zeros to ``shape``, exactly.

    Low rank stays low rank; other kinds are stored in full.
    """
    own = layer.weight_shape
    if len(own) < len(shape) and math.prod(shape[len(own) :]) == 1:
        own = (*own, *shape[len(own) :])  # a linear layer on a 1 x 1 convolution
    if isinstance(layer, LowRank) and layer.layout in ("linear", "conv"):
        down = _padded(layer.down.reshape(layer.rank, *own[1:]), (layer.rank, *shape[1:])).flatten(1)
        up = _padded(layer.up, (shape[0], layer.rank))
        return replace(layer, up=up, down=down, kernel=shape[2:], padded_to=shape)
    whole = _padded(layer.delta().reshape(own), shape)
    return Full(whole.flatten(1), 1.0, "conv" if shape[2:] else "linear", shape[2:], layer.key)


def can_widen(layer: Layer, shape: Shape) -> bool:
    """Return True if a weight of this shape has room for the layer."""
    own = layer.weight_shape
    fits = all(size <= wide for size, wide in zip(own, shape, strict=False))
    return fits and len(own) <= len(shape) and math.prod(shape[len(own) :]) == 1


def as_control_input(layer: Layer, shape: Shape) -> Layer | None:
    """Return the layer as one that widens the model's input, or None if it does not do so to ``shape``.

    Diffusers widens the input of Flux for a LoRA that takes twice as much, for a control image beside the
    latent; its files do not say so.
    """
    if not (isinstance(layer, LowRank) and layer.key.endswith("x_embedder")):
        return None
    if layer.weight_shape != (*shape[:1], *(2 * size for size in shape[1:])):
        return None
    return replace(layer, padded_to=layer.weight_shape)


def _with_control_input(lora: Lora, others: Sequence[Lora]) -> Lora:
    """Mark the input layer that takes twice as much as the same layer of another LoRA."""
    for name in filter(is_input, lora.layers):
        for other in others:
            narrow = other.layers.get(name)
            wide = None if narrow is None else as_control_input(lora.layers[name], narrow.weight_shape)
            if wide is not None:
                return replace(lora, layers=lora.layers | {name: wide}, origin=lora.origin or lora)
    return lora


def _with_layer(lora: Lora, name: str, shape: Shape) -> Lora:
    layer = lora.layers[name]
    if layer.weight_shape == shape or not can_widen(layer, shape):
        return lora
    return replace(lora, layers=lora.layers | {name: widen(layer, shape)}, origin=lora.origin or lora)


def _padded(tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor with zeros behind its entries in each dimension."""
    missing = [size for wide, own in zip(shape, tensor.shape, strict=True) for size in (wide - own, 0)]
    return pad(tensor, missing[::-1]) if any(missing) else tensor
