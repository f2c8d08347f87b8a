"""Language models that ComfyUI holds as CLIP, under the names that PEFT gives to their modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.lora import BaseDependent, Layer, WholeWeight
from ..core import list_fused_linears
from ..target import Part, Shapes, Target

Held = Layer | BaseDependent | WholeWeight
Encoders = dict[str, dict[str, Target]]  # name of a text encoder -> path of a module in it -> its weight
_COMPONENT = re.compile(r"text_encoder(_\d)?\.(?!text_model\.)")
# what classes of transformers wrap around the same modules: a head, a vision tower, or nothing
_WRAPPERS = re.compile(r"((base_model|model|language_model|vision_tower|bert|roberta)\.)+")
_INSIDE = ".transformer."


def find_encoders(clip: Any | None, shapes: Shapes) -> Encoders:
    """Find the modules of every text encoder; q, k and v of a fused weight are slices of it."""
    found: Encoders = {}
    for key in shapes:
        encoder, inside, path = key.partition(_INSIDE)
        if inside and key.endswith(".weight"):
            found.setdefault(encoder, {})[strip_wrappers(path.removesuffix(".weight"))] = Target(key)
    for module, parts in _find_fused(clip):
        encoder, _, path = module.partition(_INSIDE)
        for name, target in parts.items():
            found.setdefault(encoder, {})[f"{strip_wrappers(path)}.{name}"] = target
    return found


def name_slices(clip: Any | None) -> dict[str, Target]:
    """Name the slices of fused weights as ComfyUI's map would; the map itself lacks them."""
    return {
        f"text_encoders.{module}.{name}": target
        for module, parts in _find_fused(clip)
        for name, target in parts.items()
    }


def strip_wrappers(name: str) -> str:
    """Return a module's path without what wraps the language model: ``layers.0.self_attn.q_proj``."""
    return _WRAPPERS.sub("", _COMPONENT.sub("", name, count=1), count=1) if "." in name else name


def spell_for_comfyui(name: str) -> str:
    """Spell a module of a language model as ComfyUI's map does for any text encoder."""
    path = strip_wrappers(name)
    is_decoder = path.startswith(("layers.", "embed_tokens", "norm", "lm_head"))
    return f"text_encoders.transformer.{'model.' if is_decoder else ''}{path}"


def find_encoder_targets(
    lora_name: str, held: Mapping[str, Held], encoders: Encoders, shapes: Shapes
) -> dict[str, Target]:
    """Find the text encoder that an adapter was made for, by the names and shapes of its layers.

    If no encoder has the right shapes, the one with most of the names is taken, so that an error can state
    the shapes.

    Raises:
        IncompatibleLoraError: if the adapter fits two text encoders equally well.
    """
    modules = {name: strip_wrappers(name.removesuffix(".bias")) for name in held}
    named = {
        encoder: {name: paths[module] for name, module in modules.items() if module in paths}
        for encoder, paths in encoders.items()
    }
    named = {encoder: targets for encoder, targets in named.items() if targets}
    scores = {encoder: _score(held, targets, shapes) for encoder, targets in named.items()}
    most = max(scores.values(), default=(0, 0))
    best = [encoder for encoder, score in scores.items() if score == most]
    if len(best) > 1 and most[0]:
        raise IncompatibleLoraError(
            f"{lora_name} fits {' and '.join(best)} of this CLIP alike and does not say which it is for; "
            "connect a CLIP that has only one of them"
        )
    return named[best[0]] if best else {}


def _score(held: Mapping[str, Held], targets: dict[str, Target], shapes: Shapes) -> tuple[int, int]:
    """How many parts have the shape of their weight in an encoder, and then how few have another."""
    fitting = sum(_fits(name, held[name], target.shape(shapes)) for name, target in targets.items())
    return fitting, fitting - len(targets) if fitting else len(targets)


def _fits(name: str, held: Held, shape: tuple[int, ...]) -> bool:
    """True if a part has the shape of a weight, of which a bias has the rows; vocabularies may differ."""
    if isinstance(held, WholeWeight):
        own = tuple(held.value.shape)
        return own == shape[:1] if name.endswith(".bias") else own[1:] == shape[1:]
    if name.endswith(".bias"):
        return isinstance(held, BaseDependent) or held.matrix_shape[0] == shape[0]
    return held.fits(shape)


def _find_fused(clip: Any | None) -> list[tuple[str, dict[str, Target]]]:
    """Paths of modules with fused weights, and the rows of each part."""
    return [
        (path, _stack_rows(f"{path}.{linear}.weight", sizes))
        for path, linear, sizes in list_fused_linears(clip)
    ]


def _stack_rows(key: str, sizes: dict[str, int]) -> dict[str, Target]:
    start = 0
    parts: dict[str, Target] = {}
    for name, size in sizes.items():
        parts[name] = Target(key, Part(0, start, size))
        start += size
    return parts
