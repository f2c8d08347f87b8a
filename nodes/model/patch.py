"""Merged layers as ComfyUI patches: computed when ComfyUI patches the weight, not before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase, pad_tensor_to_shape
from comfy.weight_adapter.lora import LoRAAdapter

from ...merge_ops.adapters import Bound
from ...merge_ops.adapters.reading import TABLES
from ...merge_ops.lora import BaseDependent, Layer, LowRank
from ...merge_ops.merging.align import AlignedLayer
from ...merge_ops.merging.merged import Merged
from ...merge_ops.merging.merged_layer import MergedLayer
from ...merge_ops.merging.request import Settings
from ...merge_ops.merging.spaces import merged_tiles
from ...merge_ops.methods.registry import get_method
from ...merge_ops.names.architectures import is_text
from .memory import tiles_or_on_cpu
from .targets import Target

_RECORDS = TABLES.records  # the class of every kind of adapter, by name


class MergedAdapter(WeightAdapterBase):
    """The merged delta of one layer, made anew from the LoRAs' factors each time a weight is patched.

    ``weights`` holds all state as tensors, tuples and scalars: ComfyUI moves the tensors and rebuilds the
    adapter as ``MergedAdapter(loaded_keys, weights)``. No full delta is kept.
    """

    name = "lora_alloy"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(cls, layer: MergedLayer, whole: bool) -> MergedAdapter:
        """Pack a merged layer; ``whole`` if ComfyUI's function for its weight needs all rows at once."""
        aligned, settings = layer.aligned, layer.settings
        parts = tuple(map(_packed, aligned.parts))
        how = (
            settings.method.name,
            tuple(settings.params.items()),
            settings.space,
            settings.scale,
            settings.seed,
        )
        return cls(
            set(), (aligned.name, parts, aligned.weights, aligned.identities, layer.thresholds, how, whole)
        )

    def layer(self, weight: torch.Tensor) -> MergedLayer:
        """Unpack the merged layer; adapters that depend on the base weight get a copy of ``weight``."""
        name, parts, weights, identities, thresholds, how, _ = self.weights
        method, params, space, scale, seed = how
        base = weight.clone() if any(part[0] == Bound.__name__ for part in parts) else weight
        layers = tuple(_unpacked(part, base) for part in parts)
        aligned = AlignedLayer(name, layers, tuple(weights), tuple(identities))
        settings = Settings(get_method(method), dict(params), space, None, scale, seed)
        return MergedLayer(aligned, settings, thresholds)

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """Add ``strength * delta`` to the weight, which is a slice of it where ComfyUI says so."""
        # a function puts a delta's rows in the order of the weight, or the weight's in that of the LoRA
        layer = self.layer(function(weight) if self.weights[-1] else weight)
        if layer.padded_to:
            weight = pad_tensor_to_shape(weight, list(layer.padded_to))
        rows = weight.reshape(weight.shape[0], -1)
        if self.weights[-1] or layer.template.stored_in_out or rows.data_ptr() != weight.data_ptr():
            delta = layer.template.as_weight(layer.matrix(weight.device)).reshape(weight.shape)
            weight += function((strength * delta).type(weight.dtype))
            return weight

        def tiles(device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
            return merged_tiles(layer.aligned, layer.settings, layer.thresholds, device)

        for start, tile in tiles_or_on_cpu(tiles, weight.device):
            scaled = tile.mul_(strength * layer.settings.scale)
            rows[start : start + tile.shape[0]] += scaled.type(weight.dtype)
        return weight


def _packed(value: Any) -> Any:
    """A layer as a tuple of its kind and its fields; a base weight is left out, ComfyUI brings it."""
    if not isinstance(value, Layer | BaseDependent):
        return value
    if _RECORDS.get(type(value).__name__) is not type(value):
        raise TypeError(f"{type(value).__name__} is in no row of merge_ops.adapters.KINDS")
    return (
        type(value).__name__,
        *(None if f.name == "base" else _packed(getattr(value, f.name)) for f in fields(value)),
    )


def _unpacked(value: Any, base: torch.Tensor) -> Any:
    if not (isinstance(value, tuple) and value and value[0] in _RECORDS):
        return value
    kind, *values = value
    if kind == Bound.__name__:
        return Bound(_unpacked(values[0], base), base, *values[2:])
    return _RECORDS[kind](*(_unpacked(v, base) for v in values))


def add_merge(patcher: Any, merged: Merged, targets: dict[str, Target], strength: float) -> None:
    """Add a merge to a (cloned) ModelPatcher or CLIP.

    A linear merge becomes ComfyUI's own LoRA adapters, one a LoRA and in the order of the list, so that it is
    the same, bit for bit, as loading them one after the other.
    """
    whole: dict[Target, Any] = {
        targets[name]: ("set", (weight.value,))
        for name, weight in merged.whole_weights.items()
        if name in targets
    }
    if whole:
        patcher.add_patches(whole, strength)
    layers = {name: merged.layer(name) for name in merged.layers if name in targets}
    plain = {  # in the order of the map: where slices overlap, sums round as in ComfyUI's own loader
        name: target
        for name, target in targets.items()
        if (layer := layers.get(name)) is not None
        and layer.fixed is None
        and layer.settings.method.linear
        and layer.aligned.is_low_rank
    }
    for index in range(len(merged.loras) if plain else 0):
        _add_one_lora(patcher, merged, index, plain, strength)
    patches = {
        targets[name]: _adapter(layer, targets[name]) for name, layer in layers.items() if name not in plain
    }
    if patches:
        patcher.add_patches(patches, strength)


def not_applied(merged: Merged, model: Any | None, clip: Any | None) -> list[str]:
    """A line for each part that the merge changes and that is not connected."""
    names = dict.fromkeys((*merged.layers, *merged.whole_weights))
    text = sum(map(is_text, names))
    lines = []
    if clip is None and text:
        lines.append(f"CLIP is not connected: {text} layers of text encoders are merged and not applied")
    if model is None and (count := len(names) - text):
        lines.append(f"MODEL is not connected: {count} layers of the model are merged and not applied")
    return lines


def _add_one_lora(
    patcher: Any, merged: Merged, index: int, targets: dict[str, Target], strength: float
) -> None:
    lora = merged.loras[index]
    by_weight: dict[float, dict[Target, LoRAAdapter]] = {}
    for name, target in targets.items():
        layer = lora.layers.get(name)
        strength_here = merged.request.block_strength(index, name)
        if isinstance(layer, LowRank) and strength_here:
            scaled = layer if strength_here == 1 else layer.scaled(strength_here)
            by_weight.setdefault(merged.request.weight(index, name), {})[target] = _lora_adapter(scaled)
    for weight, patches in by_weight.items():
        patcher.add_patches(patches, weight * merged.request.settings.scale * strength)


def _adapter(layer: MergedLayer, target: Target) -> WeightAdapterBase:
    if layer.fixed is not None:
        return _lora_adapter(layer.fixed)
    return MergedAdapter.of(layer, whole=not isinstance(target, str) and len(target) == 3)


def _lora_adapter(layer: LowRank) -> LoRAAdapter:
    """ComfyUI's adapter for a low-rank layer; it multiplies by alpha / rank."""
    padded = list(layer.padded_to) or None
    up, down = (layer.down.T, layer.up.T) if layer.stored_in_out else (layer.up, layer.down)
    return LoRAAdapter(set(), (up, down, layer.scale * layer.rank, None, None, padded))
