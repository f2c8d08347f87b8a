"""Which weight of a ComfyUI model each layer of a LoRA belongs to.

ComfyUI's own key maps decide. Names that they miss (today's diffusers and PEFT names, PEFT folders, pti
files) are brought to a spelling that the maps know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from comfy.model_patcher import ModelPatcher

from ...merge_ops.errors import IncompatibleLoraError
from ...merge_ops.lora import Lora
from ...merge_ops.names.architectures import guess, is_text
from ...merge_ops.names.spelling import kohya_name
from .base_weights import bound_to
from .fused import Target, cut, in_its_order, join, key_of, shape_of, slices_to_merge_by
from .key_maps import KeyMaps, Shapes, is_denoiser, key_maps, weight_of

T = TypeVar("T")


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
    maps = key_maps(model, clip)
    key_map, shapes = maps.both, maps.shapes
    given, loras = loras, bound_to(loras, maps, model, clip)
    found = [maps.targets(lora.layers, lora.name) for lora in loras]
    whole = [maps.targets(lora.whole_weights, lora.name) for lora in loras]
    for lora, bound, targets, set_targets in zip(given, loras, found, whole, strict=True):
        if (lora.layers or lora.base_dependent or lora.whole_weights) and not (targets or set_targets):
            raise IncompatibleLoraError(_stranger(lora, model, maps))
        _check_fits(bound, targets, maps)
    _check_whole(loras, whole, shapes)
    loras = [_as_stored(lora, targets) for lora, targets in zip(loras, found, strict=True)]
    kept = [_of_the_absent(lora.layers, t, model, clip) for lora, t in zip(loras, found, strict=True)]
    kept_whole = [
        _of_the_absent(lora.whole_weights, t, model, clip) for lora, t in zip(loras, whole, strict=True)
    ]
    missing = [
        (
            lora.name,
            [name for name in lora.layers | lora.whole_weights if not any(name in part for part in parts)],
        )
        for lora, *parts in zip(loras, found, whole, kept, kept_whole, strict=True)
    ]
    originals = loras
    loras, found, apart = _in_like_pieces(loras, found, maps)
    spellings: dict[Target, list[str]] = {}
    for spelling, target in key_map.items():
        spellings.setdefault(target, []).append(spelling)
    names = _common_names(loras, found, spellings)
    for targets in whole:
        names |= {target: names.get(target, name) for name, target in targets.items()}
    return Fit(
        [
            replace(
                lora,
                layers={names[t]: lora.layers[layer] for layer, t in targets.items()} | others,
                whole_weights={names[t]: lora.whole_weights[name] for name, t in set_targets.items()}
                | other_whole,
                origin=origin.origin or origin,
            )
            for lora, targets, set_targets, others, other_whole, origin in zip(
                loras, found, whole, kept, kept_whole, originals, strict=True
            )
        ],
        {name: target for target, name in names.items() if is_denoiser(target)},
        {name: target for target, name in names.items() if not is_denoiser(target)},
        [(name, layers) for name, layers in missing if layers],
        {name: _stem(name, spellings.get(weight_of(target), [])) for target, name in names.items()},
        apart,
    )


def _in_like_pieces(
    loras: list[Lora], found: list[dict[str, Target]], maps: KeyMaps
) -> tuple[list[Lora], list[dict[str, Target]], list[str]]:
    """The LoRAs with layers on the same pieces of each weight, and the weights where that cannot be."""
    whole = {target for targets in found for target in targets.values() if isinstance(target, str)}
    pairs = [in_its_order(lora, targets, maps, whole) for lora, targets in zip(loras, found, strict=True)]
    pairs = [join(lora, targets, maps.unsliced, maps.shapes) for lora, targets in pairs]
    slices, apart = slices_to_merge_by([targets for _, targets in pairs], maps.both, maps.shapes)
    pairs = [cut(lora, targets, slices, maps.shapes) for lora, targets in pairs]
    return [lora for lora, _ in pairs], [targets for _, targets in pairs], apart


def _of_the_absent(
    held: dict[str, T], targets: dict[str, Target], model: ModelPatcher | None, clip: Any | None
) -> dict[str, T]:
    """What belongs to a part that is not connected: merged under its own names, so that nothing is lost."""
    return {
        name: part
        for name, part in held.items()
        if name not in targets and (clip if is_text(name) else model) is None
    }


def _as_stored(lora: Lora, targets: dict[str, Target]) -> Lora:
    """The same LoRA for ComfyUI's weights, which are never stored (in, out) as Conv1D of transformers is."""
    turned = {name for name in targets if lora.layers[name].layout == "fan_in_fan_out"}
    if not turned:
        return lora
    layers = {
        # every kind is a dataclass, which their abstract base cannot say
        name: replace(layer, layout="linear") if name in turned else layer  # type: ignore[type-var]
        for name, layer in lora.layers.items()
    }
    return replace(lora, layers=layers)


def _check_fits(lora: Lora, targets: dict[str, Target], maps: KeyMaps) -> None:
    """Refuse a LoRA with two entries for one weight, or a layer of another shape."""
    if len(set(targets.values())) < len(targets):
        raise IncompatibleLoraError(f"{lora.name} has two entries for one weight of this model; keep one")
    for layer, target in targets.items():
        _check_shape(lora, layer, target, maps.shapes)


def _check_whole(loras: list[Lora], whole: list[dict[str, Target]], shapes: Shapes) -> None:
    """Refuse weights that take the place of others and have another shape."""
    for lora, targets in zip(loras, whole, strict=True):
        for name, target in targets.items():
            if lora.whole_weights[name].rows:
                raise IncompatibleLoraError(
                    f"{lora.name} trains single tokens of {name}, which ComfyUI cannot apply"
                )
            found, expected = tuple(lora.whole_weights[name].value.shape), shapes[key_of(target)]
            if isinstance(target, str) and found != expected:
                raise IncompatibleLoraError(
                    f"{lora.name}: {name} has the shape {found}, and the model's weight {expected}; "
                    "the LoRA was made for another base model"
                )


def _common_names(
    loras: list[Lora], found: list[dict[str, Target]], spellings: dict[Target, list[str]]
) -> dict[Target, str]:
    """One name for each weight: of those that the LoRAs give it, the first that says which part it is in."""
    names: dict[Target, str] = {}
    for lora, targets in zip(loras, found, strict=True):
        if len(set(targets.values())) < len(targets):
            raise IncompatibleLoraError(
                f"{lora.name} changes one weight of this model as a whole and in slices; keep one"
            )
        for layer, target in targets.items():
            proper = _telling(layer, target, spellings)
            names[target] = min(names.get(target, proper), proper)
    if len(set(names.values())) < len(names):
        raise IncompatibleLoraError(
            "the LoRAs call different weights of this model by one name; merge them apart"
        )
    return names


def _telling(name: str, target: Target, spellings: dict[Target, list[str]]) -> str:
    """The name, or another one if it does not tell the text encoder and the diffusion model apart.

    ``layers.0.self_attn.q_proj`` may be either, and the strengths of the two differ.
    """
    wanted = not is_denoiser(target)
    end = ".bias" if name.endswith(".bias") else ""
    known = (f"{spelling}{end}" for spelling in spellings.get(weight_of(target), ()))
    usual = (name, f"model.{name}", *known, f"diffusion_model.{name}", f"text_encoders.{name}")
    return next(spelling for spelling in usual if is_text(spelling) == wanted)


def _stem(name: str, known: list[str]) -> str:
    """Among the spellings that ComfyUI knows, the one that most other tools know too."""
    name = name.removesuffix(".bias")
    usual = (kohya_name(name, single_text_encoder=True), kohya_name(name), name)
    return next((spelling for spelling in usual if spelling in known), (*known, name)[0])


def _check_shape(lora: Lora, layer: str, target: Target, shapes: Shapes) -> None:
    shape = shape_of(target, shapes)
    held = lora.layers[layer]
    if held.padded_to:
        return  # the weight is widened to the LoRA's shape
    rows, columns = held.matrix_shape
    expected = shape[0], _product(shape[1:])
    if held.weight_shape != shape and (rows, columns) != expected:
        raise IncompatibleLoraError(
            f"{lora.name}: {layer} has the shape {held.weight_shape}, and the model's weight "
            f"{shape}; the LoRA was made for another base model"
        )


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _stranger(lora: Lora, model: ModelPatcher | None, maps: KeyMaps) -> str:
    """Why nothing of a LoRA fits."""
    held = {**lora.layers, **lora.base_dependent, **lora.whole_weights}
    text_only = all(map(is_text, held))
    if text_only and not maps.encoders:
        return f"{lora.name} changes only the text encoder; connect CLIP"
    shown = ", ".join(layer.key or name for name, layer in list(held.items())[:3])
    found = guess(lora)
    kind = type(model.model.model_config).__name__ if model is not None else ""
    if text_only:
        kind = f"a CLIP of {' and '.join(maps.encoders)}"
        return (
            f"{lora.name} does not fit {kind}: none of its {len(held)} layers is in it (the first are "
            f"{shown}); the LoRA was made for another text encoder"
        )
    looks = f": it looks like a {found.title} LoRA, and this model is {kind}" if found and kind else ""
    return (
        f"{lora.name} does not fit this model: none of its {len(held)} layers is in it (the first are "
        f"{shown}); the LoRA was made for another base model{looks}"
    )
