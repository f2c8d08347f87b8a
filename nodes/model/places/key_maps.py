"""ComfyUI's key maps of a model, and the names that the maps lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher

from ....merge_ops.lora import BaseDependent, Layer, WholeWeight
from ....merge_ops.names.original import diffusers_names, has_halves, is_swapped, pieces
from ....merge_ops.names.parts import flat_name
from ....merge_ops.names.spelling import kohya_name
from ..core import StoredWeight, image_model, read_stored_weights, read_widened_shapes, text_model
from ..target import Part, Shapes, Target
from .language import Encoders, find_encoder_targets, find_encoders, name_slices
from .packed import read_true_shape

_DOTTED = ("unet.base_model.model.", "base_model.model.", "diffusion_model.", "transformer.", "unet.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_PREFIX = "diffusion_model."


@dataclass(frozen=True, slots=True)
class KeyMaps:
    """``unet`` and ``clip`` are ComfyUI's maps; ``flat`` has the denoiser's names without prefix and dots."""

    unet: dict[str, Target]
    clip: dict[str, Target]
    flat: dict[str, Target]
    unsliced: frozenset[str]  # keys of weights with slices that ComfyUI's own map lacks
    shapes: Shapes  # key of a weight -> its shape, unpacked
    stored: dict[str, StoredWeight]  # key of a weight -> the weight without patches
    encoders: Encoders  # modules of the text encoders
    widened: Shapes = field(default_factory=dict)  # key of a weight that earlier patches pad -> its new shape

    @property
    def both(self) -> dict[str, Target]:
        """The maps of the diffusion model and of the text encoders as one."""
        return self.unet | self.clip

    def find_targets(
        self, held: Mapping[str, Layer | BaseDependent | WholeWeight], lora_name: str = "the LoRA"
    ) -> dict[str, Target]:
        """Find the target of each layer that the model has; ``lora_name`` is for error messages.

        The result is in the order of the map, as in ComfyUI's own loader, so that sums round alike where
        slices of a weight overlap. The target of ``module.bias`` follows from that of the module.

        Raises:
            IncompatibleLoraError: if the LoRA fits two text encoders equally well.
        """
        both = self.both
        places = {spelling: place for place, spelling in enumerate(both)}
        found: dict[str, tuple[int, Target]] = {}
        for name, part in held.items():
            module = name.removesuffix(".bias")
            for spelling in _spellings(module, part.key):
                if spelling in both and both[spelling].key in self.shapes:
                    found[name] = places[spelling], both[spelling]
                    break
            else:
                if (target := self.flat.get(flat_name(module))) is not None:
                    found[name] = len(places), target
        others = {name: part for name, part in held.items() if name not in found}
        for name, target in find_encoder_targets(lora_name, others, self.encoders, self.shapes).items():
            found[name] = len(places), target
        for name in [name for name in found if name.endswith(".bias")]:
            place, target = found.pop(name)
            if target.bias.key in self.shapes:
                found[name] = place, target.bias
        return {name: found[name][1] for name in sorted(found, key=lambda name: found[name][0])}


def read_key_maps(model: ModelPatcher | None, clip: Any | None) -> KeyMaps:
    """Read ComfyUI's maps of the parts that are connected, and add the names that they lack."""
    unet = comfy.lora.model_lora_keys_unet(model.model, {}) if model is not None else {}
    text = comfy.lora.model_lora_keys_clip(text_model(clip), {}) if clip is not None else {}
    unet_targets, clip_targets = (
        {spelling: Target.from_comfyui(entry) for spelling, entry in entries.items()}
        for entries in (unet, text)
    )
    stored, text_stored = ({} if part is None else read_stored_weights(part) for part in (model, clip))
    shapes, text_shapes = _read_shapes(stored), _read_shapes(text_stored)
    flat: dict[str, Target] = {}
    for spelling, target in unet_targets.items():
        if target.key in shapes:
            flat.setdefault(_flatten(spelling), target)
    unsliced = set()
    if model is not None:
        known = set(unet_targets.values())
        for name, target in _find_more_names(image_model(model), shapes):
            flat.setdefault(name, target)
            if target.part is not None and target not in known:
                unsliced.add(target.key)
    return KeyMaps(
        unet_targets,
        clip_targets | name_slices(clip),
        flat,
        frozenset(unsliced),
        {**shapes, **text_shapes},
        {**stored, **text_stored},
        find_encoders(clip, text_shapes),
        read_widened_shapes(model) if model is not None else {},
    )


def _spellings(name: str, key: str) -> Iterator[str]:
    """How ComfyUI's maps may spell a layer: first as the file does, then as other tools would."""
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


def _flatten(spelling: str) -> str:
    for prefix in _FLAT:
        if spelling.startswith(prefix):
            return spelling[len(prefix) :]
    for prefix in _DOTTED:
        if spelling.startswith(prefix):
            return spelling[len(prefix) :].replace(".", "_")
    return flat_name(spelling)


def _find_more_names(architecture: str, shapes: Shapes) -> list[tuple[str, Target]]:
    """Diffusers' names that ComfyUI's map of this model lacks; slices where the model's weight is fused."""
    found: list[tuple[str, Target]] = []
    for key, shape in shapes.items():
        if not key.startswith(_PREFIX) or not key.endswith(".weight") or len(shape) < 2:
            continue
        path = key[len(_PREFIX) : -len(".weight")]
        names = diffusers_names(architecture, path)
        if len(names) == 1:
            swapped = is_swapped(architecture, path) and has_halves(shape)
            function = _swap_halves if swapped else None
            found.append((flat_name(names[0]), Target(key, function=function)))
            continue
        for name, (start, length) in zip(names, pieces(len(names), shape) if names else (), strict=True):
            found.append((flat_name(name), Target(key, Part(0, start, length))))
    return found


def _swap_halves(weight: torch.Tensor) -> torch.Tensor:
    """Swap the upper and the lower half of the rows."""
    return torch.cat(weight.chunk(2, dim=0)[::-1])


def _read_shapes(stored: Mapping[str, StoredWeight]) -> dict[str, tuple[int, ...]]:
    return {key: read_true_shape(key, one) for key, one in stored.items()}
