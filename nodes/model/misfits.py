"""LoRAs that cannot be used with a ComfyUI model, and why."""

from __future__ import annotations

import math

from comfy.model_patcher import ModelPatcher

from ...merge_ops.errors import IncompatibleLoraError
from ...merge_ops.lora import Lora
from ...merge_ops.names.parts import is_text
from ...merge_ops.names.recognise import guess
from .key_maps import KeyMaps
from .target import LoraTargets, Shapes, Target

_OTHER_BASE = "the LoRA was made for another base model"


def refuse_misfits(
    given: list[Lora], targets: list[LoraTargets], maps: KeyMaps, model: ModelPatcher | None
) -> None:
    """Refuse LoRAs that the model cannot take; ``given`` is what they were before they were bound to it.

    Raises:
        IncompatibleLoraError: if a LoRA has no layer in common with the model, one of another shape, two for
            one weight, or a whole weight that ComfyUI cannot apply.
    """
    for lora, one in zip(given, targets, strict=True):
        has_something = lora.layers or lora.base_dependent or lora.whole_weights
        if has_something and not (one.layers or one.whole_weights):
            raise IncompatibleLoraError(_explain_stranger(lora, model, maps))
        if len(set(one.layers.values())) < len(one.layers):
            raise IncompatibleLoraError(
                f"{lora.name} has two entries for one weight of this model; keep only one of them"
            )
        for name, target in one.layers.items():
            _refuse_other_shape(one.lora, name, target.shape(maps.shapes))
    for one in targets:
        for name, target in one.whole_weights.items():
            _refuse_whole_weight(one.lora, name, target, maps.shapes)


def _refuse_other_shape(lora: Lora, name: str, shape: tuple[int, ...]) -> None:
    layer = lora.layers[name]
    if layer.padded_to:
        return  # the weight is widened to the LoRA's shape
    if layer.weight_shape != shape and layer.matrix_shape != (shape[0], math.prod(shape[1:])):
        raise IncompatibleLoraError(
            f"{lora.name}: {name} has the shape {layer.weight_shape}, and the model's weight {shape}; "
            f"{_OTHER_BASE}"
        )


def _refuse_whole_weight(lora: Lora, name: str, target: Target, shapes: Shapes) -> None:
    weight = lora.whole_weights[name]
    if weight.rows:
        raise IncompatibleLoraError(f"{lora.name} trains single tokens of {name}, which ComfyUI cannot apply")
    shape, expected = tuple(weight.value.shape), shapes[target.key]
    if target.is_whole and shape != expected:
        raise IncompatibleLoraError(
            f"{lora.name}: {name} has the shape {shape}, and the model's weight {expected}; {_OTHER_BASE}"
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
    kind = type(model.model.model_config).__name__ if model is not None else ""
    looks = ""
    if architecture and kind:
        looks = f": it looks like a {architecture.title} LoRA, and this model is {kind}"
    return f"{lora.name} does not fit this model: {absent}; {_OTHER_BASE}{looks}"
