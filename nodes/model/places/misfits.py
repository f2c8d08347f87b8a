"""LoRAs that cannot be used with a ComfyUI model, and why."""

from __future__ import annotations

from dataclasses import replace

from comfy.model_patcher import ModelPatcher

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.lora import Layer, Lora
from ....merge_ops.merging.misfits import leave_out_misfits
from ....merge_ops.merging.widened import as_control_input, can_widen, widen
from ....merge_ops.names.parts import is_text
from ....merge_ops.names.recognise import guess
from ..core import model_kind
from ..target import LoraTargets, Target
from .key_maps import KeyMaps
from .split_fused import Places, shape_of

_OTHER_BASE = "the LoRA was made for another base model"


def refuse_strangers(
    loras: list[Lora], places: list[Places], maps: KeyMaps, model: ModelPatcher | None
) -> None:
    """Refuse LoRAs that have no weight in common with the model.

    Raises:
        IncompatibleLoraError: if there is one.
    """
    for lora, found in zip(loras, places, strict=True):
        if (lora.layers or lora.base_dependent or lora.whole_weights) and not found:
            raise IncompatibleLoraError(_explain_stranger(lora, model, maps))


def leave_out(lora: Lora, places: Places, maps: KeyMaps) -> Lora:
    """Return the LoRA without the weights that the model has in another shape.

    An input layer that takes a control image besides is marked as one that widens the model's.

    Raises:
        IncompatibleLoraError: if most of its weights do not fit.
    """
    shapes = {name: shape_of(targets, maps.shapes) for name, targets in places.items()}
    wider: dict[str, Layer] = {}
    for name, layer in lora.layers.items():
        if name in shapes and not layer.fits(shapes[name]):
            control = as_control_input(layer, shapes[name])
            if control is not None:
                wider[name] = control
    if wider:
        lora = replace(lora, layers=lora.layers | wider, origin=lora.origin or lora)
    return leave_out_misfits(lora, shapes)


def widen_as_patched(lora: Lora, places: dict[str, Target], maps: KeyMaps) -> Lora:
    """Return the LoRA with its layers as wide as earlier patches of MODEL make their weights."""
    wider: dict[str, Layer] = {}
    for name, layer in lora.layers.items() if maps.widened else ():
        patched = maps.widened.get(places[name].key) if name in places and places[name].is_whole else None
        if patched is not None:
            shape = tuple(map(max, patched, layer.padded_to or patched))
            if can_widen(layer, shape):
                wider[name] = widen(layer, shape)
    return replace(lora, layers=lora.layers | wider, origin=lora.origin or lora) if wider else lora


def refuse_unusable(targets: list[LoraTargets]) -> None:
    """Refuse what ComfyUI cannot apply.

    Raises:
        IncompatibleLoraError: for two layers of a LoRA on one weight, or a part of a vocabulary.
    """
    for one in targets:
        if len(set(one.layers.values())) < len(one.layers):
            raise IncompatibleLoraError(
                f"{one.lora.name} has two entries for one weight of this model; keep only one of them"
            )
        for name in one.whole_weights:
            if one.lora.whole_weights[name].rows:
                raise IncompatibleLoraError(
                    f"{one.lora.name} trains single tokens of {name}, which ComfyUI cannot apply"
                )


def _explain_stranger(lora: Lora, model: ModelPatcher | None, maps: KeyMaps) -> str:
    """Why the model has none of a LoRA's layers."""
    held = {**lora.layers, **lora.base_dependent, **lora.whole_weights}
    text_only = all(map(is_text, held))
    if text_only and not maps.encoders:
        return f"{lora.name} changes only the text encoder; connect CLIP"
    shown = ", ".join(layer.key or name for name, layer in list(held.items())[:3])
    absent = f"none of its {len(held)} layers is in it (the first are {shown})"
    if text_only:
        return (
            f"{lora.name} does not fit a CLIP of {' and '.join(maps.encoders)}: {absent}; the LoRA was made "
            "for another text encoder"
        )
    architecture = guess(lora)
    kind = model_kind(model) if model is not None else ""
    looks = ""
    if architecture and kind:
        looks = f": it looks like a {architecture.title} LoRA, and this model is {kind}"
    return f"{lora.name} does not fit this model: {absent}; {_OTHER_BASE}{looks}"
