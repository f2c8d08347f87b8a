"""Merged layers as ComfyUI patches: computed when ComfyUI patches the weight, not before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase, pad_tensor_to_shape
from comfy.weight_adapter.lora import LoRAAdapter

from ....merge_ops.adapters import Bound
from ....merge_ops.adapters.reading import TABLES
from ....merge_ops.lora import LowRank
from ....merge_ops.merging.align import AlignedLayer
from ....merge_ops.merging.merged import Merged
from ....merge_ops.merging.merged_layer import MergedLayer
from ....merge_ops.merging.request import Settings
from ....merge_ops.methods.registry import get_method
from ..core import pack_low_rank, unpack_low_rank
from ..memory import make_tiles
from ..places.packed import refuse_other_size
from ..target import Target
from .whole_weights import add_whole_weights

_RECORDS = TABLES.records  # the class of every kind of adapter, by name
_PLAIN = (torch.Tensor, str, int, float, type(None))  # what ComfyUI moves or leaves alone


class MergedAdapter(WeightAdapterBase):
    """The merged delta of one layer, computed from the LoRAs' factors each time a weight is patched.

    ``weights`` holds all state as tensors, tuples and scalars: ComfyUI moves the tensors and rebuilds the
    adapter as ``type(adapter)(loaded_keys, weights)``. No full delta is kept.
    """

    name = "lora_alloy"

    def __init__(self, loaded_keys: set[str], weights: tuple[Any, ...]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    @classmethod
    def of(cls, layer: MergedLayer, whole: bool) -> MergedAdapter:
        """Pack a merged layer; ``whole`` if ComfyUI's function for its weight needs all rows at once.

        Raises:
            TypeError: for a kind of layer that ``layer`` could not unpack again.
        """
        aligned, settings = layer.aligned, layer.settings
        parts = tuple(map(_pack, aligned.parts))
        how = (
            settings.method.name,
            tuple(settings.params.items()),
            settings.space,
            settings.scale,
            settings.seed,
        )
        owners = (aligned.weights, aligned.identities, aligned.indices, aligned.count)
        state = (aligned.name, parts, owners, layer.figures, layer.core, how, whole, layer.padded_to)
        return cls(set(), state)

    @property
    def depends_on_weight(self) -> bool:
        """True if another weight would get another change: adapters such as DoRA, and layers that widen."""
        return any(part[0] == Bound.__name__ for part in self.weights[1]) or bool(self.weights[7])

    def layer(self, weight: torch.Tensor) -> MergedLayer:
        """Unpack the merged layer; base-dependent adapters get a copy of ``weight``."""
        name, parts, owners, figures, core, how, *_ = self.weights
        method, params, space, scale, seed = how
        base = weight.clone() if any(part[0] == Bound.__name__ for part in parts) else weight
        layers = tuple(_unpack(part, base) for part in parts)
        aligned = AlignedLayer(name, layers, *(tuple(o) if isinstance(o, list) else o for o in owners))
        settings = Settings(get_method(method), dict(params), space, None, scale, seed)
        return MergedLayer(aligned, settings, figures, core=core)

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """Return the shape that the weight is padded to, which ComfyUI asks for before it makes room."""
        return tuple(self.weights[7]) or None

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
        """Add ``strength * delta`` to ``weight``, which ComfyUI has cut to the part that is patched."""
        if strength == 0 and not self.weights[7]:  # a hook that is off
            return weight
        # the function swaps halves: it turns a delta into the weight's order and the weight into the LoRA's
        whole = self.weights[6]
        layer = self.layer(function(weight) if whole else weight)
        if layer.padded_to:
            weight = pad_tensor_to_shape(weight, list(layer.padded_to))
        refuse_other_size(key, weight, math.prod(layer.template.matrix_shape))
        rows = weight.reshape(weight.shape[0], -1)
        if whole or layer.template.stored_in_out or rows.data_ptr() != weight.data_ptr():
            delta = layer.template.as_weight(layer.matrix(weight.device)).reshape(weight.shape)
            weight += function((strength * delta).type(weight.dtype))
            return weight

        def tiles(device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
            return layer.tiles(device)

        for start, tile in make_tiles(tiles, weight.device):
            scaled = tile if strength == 1 else tile.mul_(strength)
            rows[start : start + tile.shape[0]] += scaled.type(weight.dtype)
        return weight


class LowRankAdapter(LoRAAdapter):
    """ComfyUI's adapter for a low-rank layer, which refuses a weight of another size where that logs it."""

    def calculate_weight(
        self, weight: torch.Tensor, key: str, strength: float, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Add the change to ``weight``, exactly as ComfyUI's own adapter does."""
        up, down, padded_to = unpack_low_rank(self.weights)
        if padded_to is None:
            if strength == 0:  # a hook that is off
                return weight
            refuse_other_size(key, weight, up.shape[0] * down[0].numel())
        result: torch.Tensor = super().calculate_weight(weight, key, strength, *args, **kwargs)
        return result


def _pack(value: Any) -> Any:
    """Write a layer as a tuple of its kind and its fields, without the base weight, which ComfyUI passes in.

    ComfyUI rebuilds the patch from this, so whatever it could not copy must not get in.
    """
    kind = type(value).__name__
    if _RECORDS.get(kind) is type(value):
        return (kind, *(None if f.name == "base" else _pack(getattr(value, f.name)) for f in fields(value)))
    if isinstance(value, tuple) and all(isinstance(item, _PLAIN) for item in value):
        return value
    if not isinstance(value, _PLAIN):
        raise TypeError(
            f"a patch cannot hold a {kind}: it is neither plain data nor a record of merge_ops.adapters.KINDS"
        )
    return value


def _unpack(value: Any, base: torch.Tensor) -> Any:
    if not (isinstance(value, tuple) and value and value[0] in _RECORDS):
        return value
    kind, *values = value
    if kind == Bound.__name__:
        return Bound(_unpack(values[0], base), base, *values[2:])
    return _RECORDS[kind](*(_unpack(v, base) for v in values))


def add_merge(patcher: Any, merged: Merged, targets: dict[str, Target], strength: float) -> None:
    """Add a merge to a (cloned) ModelPatcher or CLIP.

    A linear merge becomes ComfyUI's own LoRA adapters, one for each LoRA and in the order of the list, so
    that it equals loading them one after the other bit for bit, loaded whole or in parts.
    """
    add_whole_weights(patcher, merged, targets, strength)
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
    keys: set[str] = set()
    patches = {
        targets[name]: _make_adapter(layer.without_added, targets[name], keys)
        for name, layer in layers.items()
        if name not in plain
    }
    add_patches(patcher, patches, strength)
    _add_after(patcher, merged, targets, strength)


def _add_after(patcher: Any, merged: Merged, targets: dict[str, Target], strength: float) -> None:
    """Add the LoRAs that come after the merge, as ComfyUI's loader would behind it."""
    layers = {name: merged.layer(name).added for name in targets if name in merged.layers}
    after = {name: layer for name, layer in layers.items() if layer is not None}
    plain = {name: targets[name] for name, layer in after.items() if layer.aligned.is_low_rank}
    for index in range(len(merged.loras)):
        if plain and merged.request.is_apart(index):
            _add_one_lora(patcher, merged, index, plain, strength)
    others = {
        targets[name]: MergedAdapter.of(layer, whole=targets[name].function is not None)
        for name, layer in after.items()
        if name not in plain
    }
    add_patches(patcher, others, strength)


def _add_one_lora(
    patcher: Any, merged: Merged, index: int, targets: dict[str, Target], strength: float
) -> None:
    lora = merged.loras[index]
    by_weight: dict[float, dict[Target, LowRankAdapter]] = {}
    keys: set[str] = set()  # one for all, by which Merge Loaded LoRAs knows them as one LoRA
    for name, target in targets.items():
        layer = lora.layers.get(name)
        strength_here = merged.request.block_strength(index, name)
        if isinstance(layer, LowRank) and strength_here:
            scaled = layer if strength_here == 1 else layer.scaled(strength_here)
            by_weight.setdefault(merged.request.weight(index, name), {})[target] = make_lora_adapter(
                scaled, keys
            )
    for weight, patches in by_weight.items():
        add_patches(patcher, patches, weight * merged.request.settings.scale * strength)


def add_patches(patcher: Any, patches: Mapping[Target, Any], strength: float) -> None:
    """Add patches by the weight, or the part of one, that each changes."""
    if patches:
        patcher.add_patches({target.to_comfyui(): patch for target, patch in patches.items()}, strength)


def _make_adapter(layer: MergedLayer, target: Target, keys: set[str]) -> WeightAdapterBase:
    if layer.fixed is not None:
        return make_lora_adapter(layer.fixed, keys)
    return MergedAdapter.of(layer, whole=target.function is not None)


def make_lora_adapter(layer: LowRank, keys: set[str]) -> LowRankAdapter:
    """Make ComfyUI's adapter for a low-rank layer; it multiplies by alpha / rank."""
    up, down = (layer.down.T, layer.up.T) if layer.stored_in_out else (layer.up, layer.down)
    return LowRankAdapter(keys, pack_low_rank(up, down, layer.scale * layer.rank, layer.padded_to))
