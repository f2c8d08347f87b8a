"""Merged layers as ComfyUI patches: computed when ComfyUI patches the weight, not before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter

from ..merge_ops.kinds import Full, Hadamard, Kronecker
from ..merge_ops.merged import Merged, MergedLayer
from ..merge_ops.registry import get_method
from ..merge_ops.spaces import LayerStack, Settings, merged_tiles
from ..merge_ops.types import LowRank
from .memory import tiles_or_on_cpu
from .targets import Target

_KINDS = {kind.__name__: kind for kind in (LowRank, Hadamard, Kronecker, Full)}


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
        stack, settings = layer.stack, layer.settings
        parts = tuple(
            (type(part).__name__, *(getattr(part, f.name) for f in fields(part))) for part in stack.parts
        )
        how = (
            settings.method.name,
            tuple(settings.params.items()),
            settings.space,
            settings.scale,
            settings.seed,
        )
        return cls(set(), (stack.name, parts, stack.weights, stack.identities, layer.thresholds, how, whole))

    def layer(self) -> MergedLayer:
        """Unpack the merged layer."""
        name, parts, weights, identities, thresholds, how, _ = self.weights
        method, params, space, scale, seed = how
        layers = tuple(_KINDS[kind](*values) for kind, *values in parts)
        stack = LayerStack(name, layers, tuple(weights), tuple(identities))
        settings = Settings(get_method(method), dict(params), space, None, scale, seed)
        return MergedLayer(stack, settings, thresholds)

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
        layer = self.layer()
        rows = weight.reshape(weight.shape[0], -1)
        if self.weights[-1] or layer.template.stored_in_out or rows.data_ptr() != weight.data_ptr():
            delta = layer.template.as_weight(layer.matrix(weight.device)).reshape(weight.shape)
            weight += function((strength * delta).type(weight.dtype))
            return weight

        def tiles(device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
            return merged_tiles(layer.stack, layer.settings, layer.thresholds, device)

        for start, tile in tiles_or_on_cpu(tiles, weight.device):
            scaled = tile.mul_(strength * layer.settings.scale)
            rows[start : start + tile.shape[0]] += scaled.type(weight.dtype)
        return weight


def add_merge(patcher: Any, merged: Merged, targets: dict[str, Target], strength: float) -> None:
    """Add a merge to a (cloned) ModelPatcher or CLIP.

    A linear merge becomes ComfyUI's own LoRA adapters, one a LoRA and in the order of the list, so that it is
    the same, bit for bit, as loading them one after the other.
    """
    layers = {name: merged.layer(name) for name in merged.layers if name in targets}
    plain = {  # in the order of the map: where slices overlap, sums round as in ComfyUI's own loader
        name: target
        for name, target in targets.items()
        if (layer := layers.get(name)) is not None
        and layer.fixed is None
        and layer.settings.method.linear
        and layer.stack.is_low_rank
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
    text = sum(name.startswith("text_encoder") for name in merged.layers)
    lines = []
    if clip is None and text:
        lines.append(f"CLIP is not connected: {text} layers of text encoders are merged and not applied")
    if model is None and (count := len(merged.layers) - text):
        lines.append(f"MODEL is not connected: {count} layers of the model are merged and not applied")
    return lines


def _add_one_lora(
    patcher: Any, merged: Merged, index: int, targets: dict[str, Target], strength: float
) -> None:
    lora = merged.loras[index]
    by_weight: dict[float, dict[Target, LoRAAdapter]] = {}
    for name, target in targets.items():
        layer = lora.layers.get(name)
        if isinstance(layer, LowRank):
            text = name.startswith("text_encoder")
            weight = merged.text_weights[index] if text else merged.weights[index]
            by_weight.setdefault(weight, {})[target] = _lora_adapter(layer)
    for weight, patches in by_weight.items():
        patcher.add_patches(patches, weight * merged.settings.scale * strength)


def _adapter(layer: MergedLayer, target: Target) -> WeightAdapterBase:
    if layer.fixed is not None:
        return _lora_adapter(layer.fixed)
    return MergedAdapter.of(layer, whole=not isinstance(target, str) and len(target) == 3)


def _lora_adapter(layer: LowRank) -> LoRAAdapter:
    """ComfyUI's adapter for a low-rank layer; it multiplies by alpha / rank."""
    return LoRAAdapter(set(), (layer.up, layer.down, layer.scale * layer.rank, None, None, None))
