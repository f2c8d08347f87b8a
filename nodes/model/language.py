"""Language models that ComfyUI holds as CLIP, under the names that PEFT gives to their modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...merge_ops.errors import IncompatibleLoraError
from ...merge_ops.lora import BaseDependent, Layer, WholeWeight
from .fused import Target, shape_of

Held = Layer | BaseDependent | WholeWeight
Encoders = dict[str, dict[str, Target]]  # name of a text encoder -> path of a module in it -> its weight
_COMPONENT = re.compile(r"text_encoder(_\d)?\.(?!text_model\.)")
# what classes of transformers put around the same modules: with a head, with a vision tower, or bare
_WRAPPERS = re.compile(r"((base_model|model|language_model|vision_tower|bert|roberta)\.)+")
_INSIDE = ".transformer."


def encoders_of(clip: Any | None, shapes: Mapping[str, tuple[int, ...]]) -> Encoders:
    """The modules of every text encoder; q, k and v of a fused weight are slices of it."""
    found: Encoders = {}
    for key in shapes:
        encoder, inside, path = key.partition(_INSIDE)
        if inside and key.endswith(".weight"):
            found.setdefault(encoder, {})[bare_path(path.removesuffix(".weight"))] = key
    for module, parts in _fused(clip):
        encoder, _, path = module.partition(_INSIDE)
        for name, target in parts.items():
            found.setdefault(encoder, {})[f"{bare_path(path)}.{name}"] = target
    return found


def spelled_slices(clip: Any | None) -> dict[str, Target]:
    """The slices of fused weights as ComfyUI's map would spell them, which does not know them."""
    return {
        f"text_encoders.{module}.{name}": target
        for module, parts in _fused(clip)
        for name, target in parts.items()
    }


def bare_path(name: str) -> str:
    """A module's path without what wraps the language model: ``layers.0.self_attn.q_proj``."""
    return _WRAPPERS.sub("", _COMPONENT.sub("", name, count=1), count=1) if "." in name else name


def spelled_for_comfyui(name: str) -> str:
    """How ComfyUI's map spells a module of a language model, whichever text encoder that is."""
    path = bare_path(name)
    is_decoder = path.startswith(("layers.", "embed_tokens", "norm", "lm_head"))
    return f"text_encoders.transformer.{'model.' if is_decoder else ''}{path}"


def language_targets(
    called: str, held: Mapping[str, Held], encoders: Encoders, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Target]:
    """The weights of the text encoder that an adapter was made for, by the names and shapes of its layers.

    Where no shape fits, they are those of the encoder with most of the names, so that the shapes can be told.

    Raises:
        IncompatibleLoraError: if the adapter fits two text encoders alike.
    """
    found = {
        encoder: {name: paths[bare_path(_module(name))] for name in held if bare_path(_module(name)) in paths}
        for encoder, paths in encoders.items()
    }
    found = {encoder: targets for encoder, targets in found.items() if targets}
    fitting = {
        encoder: targets
        for encoder, targets in found.items()
        if all(_fits(name, held[name], shape_of(target, shapes)) for name, target in targets.items())
    }
    most = max(map(len, (fitting or found).values()), default=0)
    best = [encoder for encoder, targets in (fitting or found).items() if len(targets) == most]
    if len(best) > 1 and fitting:
        raise IncompatibleLoraError(
            f"{called} fits {' and '.join(best)} of this CLIP alike, and names none of them; connect a CLIP "
            "that has only one of them"
        )
    return found[best[0]] if best else {}


def _module(name: str) -> str:
    return name.removesuffix(".bias")


def _fits(name: str, held: Held, shape: tuple[int, ...]) -> bool:
    """Whether a layer has the shape of a weight; a bias, and what depends on the base, say none."""
    if name.endswith(".bias") or isinstance(held, BaseDependent):
        return True
    if isinstance(held, WholeWeight):
        return tuple(held.value.shape) == shape
    if held.padded_to:
        return True
    return held.weight_shape == shape or held.matrix_shape == shape


def _fused(clip: Any | None) -> list[tuple[str, dict[str, Target]]]:
    """Modules with fused weights: their path, and the rows of each part."""
    found = []
    for path, module in clip.cond_stage_model.named_modules() if clip is not None else ():
        if getattr(module, "merged_qkv", False) and hasattr(module, "kv_size"):
            sizes = {"q_proj": module.inner_size, "k_proj": module.kv_size, "v_proj": module.kv_size}
            found.append((path, _rows(f"{path}.qkv_proj.weight", sizes)))
        if getattr(module, "merged_mlp", False) and hasattr(module, "gate_up_proj"):
            half = module.gate_up_proj.weight.shape[0] // 2
            sizes = {"gate_proj": half, "up_proj": half}
            found.append((path, _rows(f"{path}.gate_up_proj.weight", sizes)))
    return found


def _rows(key: str, sizes: dict[str, int]) -> dict[str, Target]:
    start = 0
    parts: dict[str, Target] = {}
    for name, size in sizes.items():
        parts[name] = (key, (0, start, size))
        start += size
    return parts
