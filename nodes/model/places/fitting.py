"""Fitting LoRAs to a ComfyUI model: the weight that each of their layers changes, under one name for all.

ComfyUI's own key maps decide. Names that they lack (current diffusers and PEFT names, PEFT folders, pti
files) are brought to a spelling that the maps have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from comfy.model_patcher import ModelPatcher

from ....merge_ops.lora import BaseDependent, Layer, Lora, WholeWeight
from ....merge_ops.names.parts import is_text
from ..configurations import configurations_of, is_taken
from ..target import LoraTargets, Target
from .base_weights import bind_to_model
from .fused import cut_into_slices, find_smallest_slices, join_slices, restore_row_order
from .key_maps import KeyMaps, read_key_maps
from .misfits import leave_out, refuse_strangers, refuse_unusable, widen_as_patched
from .packed import refuse_packed
from .split_fused import find_places, split_fused
from .weight_names import choose_stem, list_spellings, name_weights

T = TypeVar("T", Layer, WholeWeight)
A = TypeVar("A", Layer, BaseDependent)


@dataclass(frozen=True, slots=True)
class FittedLoras:
    """LoRAs that use one name for each weight of the model."""

    loras: list[Lora]  # with the layers of a part that is not connected, under their own names
    unet: dict[str, Target]  # layer name -> weight of the diffusion model
    clip: dict[str, Target]  # layer name -> weight of the text encoders
    missing: list[tuple[str, list[str]]]  # LoRA name, and its layers that the model lacks
    stems: dict[str, str]  # layer name -> a spelling that ComfyUI's loader reads, for saving
    apart: list[str]  # keys of weights whose slices and whole merge separately: the map lacks some slices


def fit_to_model(
    loras: list[Lora], model: ModelPatcher | None, clip: Any | None, bypass: bool = False
) -> FittedLoras:
    """Find the weight of every layer of the LoRAs.

    A weight that the model has in another shape is left out by name, as in ComfyUI's own loader. With
    ``bypass``, weights may be packed where bypass can hold what is added.

    Raises:
        IncompatibleLoraError: if a LoRA has no layer in common with the model, or most of another shape, or
            if the model keeps a weight packed that ComfyUI does not unpack for patches.
    """
    maps = read_key_maps(model, clip)
    loras = [split_fused(_turn_conv1d(lora), maps) for lora in loras]
    places = [find_places(lora, maps) for lora in loras]
    refuse_strangers(loras, places, maps, model)
    refuse_packed(loras, places, maps.stored, model, clip, bypass)
    fitting = [leave_out(lora, found, maps) for lora, found in zip(loras, places, strict=True)]
    bound = bind_to_model(fitting, places, maps)
    targets = [_find_targets(split_fused(lora, maps), maps) for lora in bound]
    refuse_unusable(targets)
    unconnected = [_keep_unconnected(one, model, clip) for one in targets]
    alike, apart = _cut_alike(targets, maps)
    spellings = list_spellings(maps.both)
    names = name_weights(alike, spellings)
    renamed = [
        _rename(one, rest, names, before.lora)
        for one, rest, before in zip(alike, unconnected, targets, strict=True)
    ]
    missing = [_list_missing(one, rest, model) for one, rest in zip(targets, unconnected, strict=True)]
    return FittedLoras(
        renamed,
        unet={name: target for target, name in names.items() if target.is_denoiser},
        clip={name: target for target, name in names.items() if not target.is_denoiser},
        missing=[(lora.name, layers) for lora, layers in zip(renamed, missing, strict=True) if layers],
        stems={name: choose_stem(name, target, spellings) for target, name in names.items()},
        apart=apart,
    )


def _find_targets(lora: Lora, maps: KeyMaps) -> LoraTargets:
    layers = maps.find_targets(lora.layers, lora.name)
    targets = LoraTargets(lora, layers, maps.find_targets(lora.whole_weights, lora.name))
    return replace(targets, lora=widen_as_patched(lora, layers, maps))


def _turn_conv1d(lora: Lora) -> Lora:
    """ComfyUI's weights are never stored (in, out), as those of Conv1D in transformers are."""
    held = [*lora.layers.values(), *lora.base_dependent.values()]
    if all(adapter.layout != "fan_in_fan_out" for adapter in held):
        return lora
    return replace(
        lora,
        layers={name: _unturned(layer) for name, layer in lora.layers.items()},
        base_dependent={name: _unturned(adapter) for name, adapter in lora.base_dependent.items()},
        origin=lora.origin or lora,
    )


def _unturned(adapter: A) -> A:
    return adapter.changed(layout="linear") if adapter.layout == "fan_in_fan_out" else adapter


def _keep_unconnected(one: LoraTargets, model: ModelPatcher | None, clip: Any | None) -> Lora:
    """What belongs to a part that is not connected: merged under its own names, so that nothing is lost."""

    def keep(held: dict[str, T], targets: dict[str, Target]) -> dict[str, T]:
        return {
            name: part
            for name, part in held.items()
            if name not in targets and (clip if is_text(name) else model) is None
        }

    return replace(
        one.lora,
        layers=keep(one.lora.layers, one.layers),
        # a configuration is kept for the saved file, whether or not this version of ComfyUI takes it
        whole_weights=keep(one.lora.whole_weights, one.whole_weights) | configurations_of(one.lora),
    )


def _list_missing(one: LoraTargets, unconnected: Lora, model: ModelPatcher | None) -> list[str]:
    """Names that have no target although their part is connected."""
    places = (one.layers, one.whole_weights, unconnected.layers, unconnected.whole_weights)
    held = dict.fromkeys((*one.lora.layers, *one.lora.whole_weights))
    settings = configurations_of(one.lora) if model is not None else {}
    return [
        *(name for name in held if not any(name in place for place in places)),
        *(name for name, weight in settings.items() if not is_taken(weight, model)),
    ]


def _cut_alike(loras: list[LoraTargets], maps: KeyMaps) -> tuple[list[LoraTargets], list[str]]:
    """Give the LoRAs layers on the same pieces of each weight; list the weights where that is impossible."""
    whole = {target.key for one in loras for target in one.layers.values() if target.is_whole}
    known = set(maps.unet.values())
    loras = [restore_row_order(one, known, whole, maps.shapes) for one in loras]
    loras = [join_slices(one, maps.unsliced, maps.shapes) for one in loras]
    slices, apart = find_smallest_slices(loras, maps.both, maps.shapes)
    return [cut_into_slices(one, slices, maps.shapes) for one in loras], apart


def _rename(one: LoraTargets, unconnected: Lora, names: dict[Target, str], origin: Lora) -> Lora:
    """Give layers the names of their weights; random masks are still drawn for the LoRA as it came."""
    lora = one.lora
    layers = {names[target]: lora.layers[name] for name, target in one.layers.items()}
    whole = {names[target]: lora.whole_weights[name] for name, target in one.whole_weights.items()}
    return replace(
        lora,
        layers=layers | unconnected.layers,
        whole_weights=whole | unconnected.whole_weights,
        origin=origin.origin or origin,
    )
