"""Blocks of a model: which one a layer belongs to, in what order they come, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..names.architectures import STAGES
from ..names.parts import DENOISERS, OTHER_DENOISERS
from .names import facts_of

_UNET_BLOCK = re.compile(r"^(unet\.(?:mid_block|(?:down|up)_blocks\.\d+\.\w+\.\d+))(?:\.|$)")
_NUMBERED = re.compile(r"^(.*?\.\d+)(?:\.|$)")
_FLAT = re.compile(r"^(.*?_\d+)(?:_|$)")  # with kohya's underscores, if the words of the model are unknown
_PLACES = {
    "text_encoder": 0,
    "text_encoder_2": 1,
    "text_encoder_3": 2,
    "text_encoder_4": 3,
    "text_encoders": 4,
}
_AUDIO = ".audio"  # the layers of a block that make sound, beside those that make the picture
_UNET_TITLES = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


def block_of(layer: str) -> str:
    """Return the block of the model that a layer belongs to.

    In a UNet this is one attention or residual module of a level, or the whole middle block; in other models
    it is the path up to the first number. What makes sound in a block is a block of its own.
    """
    return _path_of(layer) + (_AUDIO if "audio" in facts_of(layer) else "")


def _path_of(layer: str) -> str:
    match = _UNET_BLOCK.match(layer) or _NUMBERED.match(layer)
    if match:
        return match[1]
    component, _, path = layer.partition(".")
    flat = _FLAT.match(path)
    if flat and "." not in path:
        return f"{component}.{flat[1]}"
    return ".".join(layer.split(".")[:2])


def in_model_order(blocks: Iterable[str]) -> list[str]:
    """Sort blocks, each once: text encoders first, then from the input of the model to its output."""
    return sorted(set(blocks), key=_place)


def section_of(block: str) -> tuple[str, str]:
    """Return the heading over a block and its neighbours, and the label of this one under it."""
    if block.endswith(_AUDIO):
        heading, label = section_of(block.removesuffix(_AUDIO))
        return f"{heading}, audio", label
    component, _, path = block.partition(".")
    head = _head(path)
    if component == "unet" and head in _UNET_TITLES:
        return _UNET_TITLES[head], _unet_label(path)
    numbered = re.match(r"^(.*?)[._](\d+)$", path)
    if component.startswith("text_encoder"):
        return component.replace("_", " "), numbered[2] if numbered else path.rpartition(".")[2]
    if not numbered:
        return "other", path.rpartition(".")[2] or block
    return numbered[1].rpartition(".")[2].replace("_", " "), numbered[2]


def _unet_label(path: str) -> str:
    """``1.0`` for the first attention of level 1, ``1.0r`` for a residual block, ``1s`` for a sampler."""
    parts = path.split(".")
    if len(parts) < 4:
        return parts[1] if len(parts) > 1 else ""
    if parts[2] == "attentions":
        return f"{parts[1]}.{parts[3]}"
    return f"{parts[1]}.{parts[3]}r" if parts[2] == "resnets" else f"{parts[1]}s"


def _head(path: str) -> str:
    """The first word of a path, without the number that an underscore may join to it."""
    return re.sub(r"_\d+$", "", path.partition(".")[0])


def _place(block: str) -> tuple[int, int, bool, list[tuple[int, str]]]:
    component, _, path = block.partition(".")
    numbers = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", block)]
    stage = STAGES.get(_head(path), 0) if component in (*DENOISERS, *OTHER_DENOISERS) else 0
    return _PLACES.get(component, len(_PLACES)), stage, block.endswith(_AUDIO), numbers
