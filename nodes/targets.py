"""Which weight of a ComfyUI model each layer of a LoRA belongs to.

ComfyUI's own key maps decide. Names that they miss (today's diffusers and PEFT names, PEFT folders, pti
files) are brought to a spelling that the maps know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
from comfy.model_patcher import ModelPatcher

from ..merge_ops.errors import IncompatibleLoraError
from ..merge_ops.formats.names import kohya_name
from ..merge_ops.types import Layer, Lora
from .fused import Target, cut, slices_to_merge_by


@dataclass(frozen=True, slots=True)
class Fit:
    """LoRAs whose layers are named alike where they belong to the same weight."""

    loras: list[Lora]  # with the layers of a part that is not connected, as they were
    unet: dict[str, Target]  # layer name -> weight of the diffusion model
    clip: dict[str, Target]  # layer name -> weight of the text encoders
    missing: list[tuple[str, list[str]]]  # LoRA name, and its layers that the model has not
    stems: dict[str, str]  # layer name -> a spelling that ComfyUI's loader reads, for saving
    apart: list[str]  # weights whose slices and whole are merged apart: the map does not say all slices


def fit(loras: list[Lora], model: ModelPatcher | None, clip: Any | None) -> Fit:
    """Find the weight of every layer.

    Raises:
        IncompatibleLoraError: if a LoRA has no layer in common with the model, or one of another shape.
    """
    unet_map = comfy.lora.model_lora_keys_unet(model.model, {}) if model is not None else {}
    clip_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip is not None else {}
    key_map = unet_map | clip_map
    shapes = _shapes(model.model if model is not None else None) | _shapes(
        clip.patcher.model if clip else None
    )
    found = [_targets(lora, key_map, shapes) for lora in loras]
    kept = [_of_the_absent(lora, model, clip) for lora in loras]
    missing = [
        (lora.name, [layer for layer in lora.layers if layer not in targets and layer not in others])
        for lora, targets, others in zip(loras, found, kept, strict=True)
    ]
    originals = loras
    slices, apart = slices_to_merge_by(found, key_map, shapes)
    if slices:
        pairs = [cut(lora, targets, slices) for lora, targets in zip(loras, found, strict=True)]
        loras, found = [lora for lora, _ in pairs], [targets for _, targets in pairs]
    names = _common_names(loras, found, shapes, clip is None)
    unet_targets = set(unet_map.values())
    spellings: dict[Target, list[str]] = {}
    for spelling, target in key_map.items():
        spellings.setdefault(target, []).append(spelling)
    return Fit(
        [
            replace(
                lora,
                layers={names[t]: lora.layers[layer] for layer, t in targets.items()} | others,
                origin=origin,
            )
            for lora, targets, others, origin in zip(loras, found, kept, originals, strict=True)
        ],
        {name: target for target, name in names.items() if target in unet_targets},
        {name: target for target, name in names.items() if target not in unet_targets},
        [(name, layers) for name, layers in missing if layers],
        {name: _stem(name, spellings[target]) for target, name in names.items()},
        apart,
    )


def _of_the_absent(lora: Lora, model: ModelPatcher | None, clip: Any | None) -> dict[str, Layer]:
    """Layers of a part that is not connected: merged under their own names, so that nothing is lost."""
    return {
        name: layer
        for name, layer in lora.layers.items()
        if (clip is None and name.startswith("text_encoder"))
        or (model is None and not name.startswith("text_encoder"))
    }


def _common_names(
    loras: list[Lora],
    found: list[dict[str, Target]],
    shapes: dict[str, tuple[int, ...]],
    no_clip: bool,
) -> dict[Target, str]:
    """One name for each weight, the first of those that the LoRAs give it; refuses what does not fit."""
    names: dict[Target, str] = {}
    for lora, targets in zip(loras, found, strict=True):
        if not targets:
            raise IncompatibleLoraError(_stranger(lora, no_clip))
        if len(set(targets.values())) < len(targets):
            raise IncompatibleLoraError(f"{lora.name} has two entries for one weight of this model; keep one")
        for layer, target in targets.items():
            _check_shape(lora, layer, target, shapes)
            names[target] = min(names.get(target, layer), layer)
    if len(set(names.values())) < len(names):
        raise IncompatibleLoraError(
            "the LoRAs call different weights of this model by one name; merge them apart"
        )
    return names


def _targets(lora: Lora, key_map: dict[str, Target], shapes: dict[str, tuple[int, ...]]) -> dict[str, Target]:
    """Layer name to target, for the layers that the model has.

    They are in the order of the map, as in ComfyUI's own loader: where slices of a weight overlap, sums then
    round alike.
    """
    places = {spelling: place for place, spelling in enumerate(key_map)}
    found: dict[str, str] = {}
    for name, layer in lora.layers.items():
        for spelling in _spellings(name, layer):
            if spelling in key_map and _key(key_map[spelling]) in shapes:
                found[name] = spelling
                break
    return {name: key_map[found[name]] for name in sorted(found, key=lambda name: places[found[name]])}


def _spellings(name: str, layer: Layer) -> Iterator[str]:
    """How ComfyUI's maps may spell a layer: as in the file first, then as other tools would write it."""
    yield layer.key
    yield name
    component, _, path = name.partition(".")
    if component in ("unet", "transformer", "diffusion_model"):
        yield f"lora_unet_{path.replace('.', '_')}"
        yield f"diffusion_model.{path}"
        yield f"transformer.{path}"
    elif component.startswith("text_encoder"):
        yield kohya_name(name)
        yield kohya_name(name, single_text_encoder=True)
    else:
        yield f"diffusion_model.{name}"
        yield f"transformer.{name}"
        yield f"base_model.model.{name}"


def _stem(name: str, known: list[str]) -> str:
    """Among the spellings that ComfyUI knows, the one that most other tools know too."""
    usual = (kohya_name(name, single_text_encoder=True), kohya_name(name), name)
    return next((spelling for spelling in usual if spelling in known), known[0])


def _shapes(model: Any | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights; a GGUF weight says its true shape in ``tensor_shape``."""
    if model is None:
        return {}
    return {key: tuple(getattr(w, "tensor_shape", w.shape)) for key, w in model.state_dict().items()}


def _key(target: Target) -> str:
    return target if isinstance(target, str) else str(target[0])


def _check_shape(lora: Lora, layer: str, target: Target, shapes: dict[str, tuple[int, ...]]) -> None:
    shape = list(shapes[_key(target)])
    if not isinstance(target, str) and target[1] is not None:
        dim, _, length = target[1]
        shape[dim] = length
    rows, columns = lora.layers[layer].matrix_shape
    expected = shape[0], _product(shape[1:])
    if lora.layers[layer].weight_shape != tuple(shape) and (rows, columns) != expected:
        raise IncompatibleLoraError(
            f"{lora.name}: {layer} has the shape {lora.layers[layer].weight_shape}, and the model's weight "
            f"{tuple(shape)}; the LoRA was made for another base model"
        )


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _stranger(lora: Lora, no_clip: bool) -> str:
    """Why nothing of a LoRA fits."""
    text_only = all(name.startswith("text_encoder") for name in lora.layers)
    if text_only and no_clip:
        return f"{lora.name} changes only the text encoder; connect CLIP"
    shown = ", ".join(layer.key or name for name, layer in list(lora.layers.items())[:3])
    return (
        f"{lora.name} does not fit this model: none of its {len(lora.layers)} layers is in it (the first are "
        f"{shown}); the LoRA was made for another base model"
    )
