"""ComfyUI's key maps of a model, and the names that they miss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher

from ...merge_ops.lora import BaseDependent, Layer, WholeWeight
from ...merge_ops.names.architectures import flat_name
from ...merge_ops.names.original import diffusers_names, is_swapped, pieces
from ...merge_ops.names.spelling import kohya_name
from .fused import Target, key_of
from .language import Encoders, encoders_of, language_targets, spelled_slices

Shapes = dict[str, tuple[int, ...]]
_DOTTED = ("unet.base_model.model.", "base_model.model.", "diffusion_model.", "transformer.", "unet.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_PREFIX = "diffusion_model."


@dataclass(frozen=True, slots=True)
class KeyMaps:
    """``unet`` and ``clip`` are ComfyUI's maps; ``flat`` has the denoiser's names without prefix and dots."""

    unet: dict[str, Target]
    clip: dict[str, Target]
    flat: dict[str, Target]
    unsliced: frozenset[str]  # weights with slices that ComfyUI's own map has not
    shapes: Shapes  # key of a weight -> its shape
    encoders: Encoders  # modules of the text encoders

    @property
    def both(self) -> dict[str, Target]:
        return self.unet | self.clip

    def targets(
        self, held: Mapping[str, Layer | BaseDependent | WholeWeight], called: str = "the LoRA"
    ) -> dict[str, Target]:
        """Layer name to target, for what of a LoRA the model has; ``called`` is what messages call it.

        They are in the order of the map, as in ComfyUI's own loader: where slices of a weight overlap, sums
        then round alike. The target of ``module.bias`` is found by that of the module.
        """
        both = self.both
        places = {spelling: place for place, spelling in enumerate(both)}
        found: dict[str, tuple[int, Target]] = {}
        for name, part in held.items():
            module = name.removesuffix(".bias")
            for spelling in _spellings(module, part.key):
                if spelling in both and key_of(both[spelling]) in self.shapes:
                    found[name] = places[spelling], both[spelling]
                    break
            else:
                if (target := self.flat.get(flat_name(module))) is not None:
                    found[name] = len(places), target
        others = {name: part for name, part in held.items() if name not in found}
        for name, target in language_targets(called, others, self.encoders, self.shapes).items():
            found[name] = len(places), target
        for name in [name for name in found if name.endswith(".bias")]:
            place, target = found.pop(name)
            bias = _bias_of(target)
            if key_of(bias) in self.shapes:
                found[name] = place, bias
        return {name: found[name][1] for name in sorted(found, key=lambda name: found[name][0])}


def is_denoiser(target: Target) -> bool:
    """True for a weight of the diffusion model, False for one of a text encoder."""
    return key_of(target).startswith(_PREFIX)


def weight_of(target: Target) -> Target:
    """The weight that a bias belongs to; a weight itself."""
    key = key_of(target)
    weight = f"{key.removesuffix('.bias')}.weight" if key.endswith(".bias") else key
    return weight if isinstance(target, str) else (weight, *target[1:])


def _bias_of(target: Target) -> Target:
    """The bias of a weight, or the same rows of it."""
    if isinstance(target, str):
        return f"{target.removesuffix('.weight')}.bias"
    return (f"{target[0].removesuffix('.weight')}.bias", *target[1:])


def key_maps(model: ModelPatcher | None, clip: Any | None) -> KeyMaps:
    """The maps of what is connected."""
    unet = comfy.lora.model_lora_keys_unet(model.model, {}) if model is not None else {}
    text = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip is not None else {}
    shapes = _shapes(model.model if model is not None else None)
    flat: dict[str, Target] = {}
    for spelling, target in unet.items():
        if key_of(target) in shapes:
            flat.setdefault(_flattened(spelling), target)
    unsliced = set()
    if model is not None:
        known = set(unet.values())
        for name, target in _more_names(str(model.model.model_config.unet_config.get("image_model")), shapes):
            flat.setdefault(name, target)
            if not isinstance(target, str) and target[1] is not None and target not in known:
                unsliced.add(target[0])
    texts = _shapes(clip.patcher.model if clip else None)
    text |= spelled_slices(clip)
    shapes |= texts
    return KeyMaps(unet, text, flat, frozenset(unsliced), shapes, encoders_of(clip, texts))


def _spellings(name: str, key: str) -> Iterator[str]:
    """How ComfyUI's maps may spell a layer: as in the file first, then as other tools would write it."""
    yield key
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


def _flattened(spelling: str) -> str:
    for prefix in _FLAT:
        if spelling.startswith(prefix):
            return spelling[len(prefix) :]
    for prefix in _DOTTED:
        if spelling.startswith(prefix):
            return spelling[len(prefix) :].replace(".", "_")
    return flat_name(spelling)


def _more_names(image_model: str, shapes: Shapes) -> list[tuple[str, Target]]:
    """Diffusers' names that ComfyUI's map of this model has not; slices where the model's weight is fused."""
    found: list[tuple[str, Target]] = []
    for key, shape in shapes.items():
        if not key.startswith(_PREFIX) or not key.endswith(".weight") or len(shape) < 2:
            continue
        path = key[len(_PREFIX) : -len(".weight")]
        names = diffusers_names(image_model, path)
        if len(names) == 1:
            target: Target = (key, None, _swapped) if is_swapped(image_model, path) else key
            found.append((flat_name(names[0]), target))
            continue
        for name, (start, length) in zip(names, pieces(len(names), shape) if names else (), strict=True):
            found.append((flat_name(name), (key, (0, start, length))))
    return found


def _swapped(weight: torch.Tensor) -> torch.Tensor:
    """The two halves of the rows the other way round."""
    return torch.cat(weight.chunk(2, dim=0)[::-1])


def _shapes(model: Any | None) -> Shapes:
    """Shapes of the weights; a GGUF weight says its true shape in ``tensor_shape``."""
    if model is None:
        return {}
    return {key: tuple(getattr(w, "tensor_shape", w.shape)) for key, w in model.state_dict().items()}
