"""Blocks of a model: which block a layer belongs to, in what order blocks come, and what to call them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_UNET_BLOCK = re.compile(r"^(unet\.(?:mid_block|(?:down|up)_blocks\.\d+\.\w+\.\d+))(?:\.|$)")
_NUMBERED = re.compile(r"^(.*?\.\d+)(?:\.|$)")
_FLAT = re.compile(r"^(.*?_\d+)(?:_|$)")  # kohya's underscores, where the model's words are not known
_PLACES = {
    "text_encoder": 0,
    "text_encoder_2": 1,
    "text_encoder_3": 2,
    "text_encoders": 3,
}
_STAGES = {
    "down_blocks": 1, "mid_block": 2, "up_blocks": 3, "conv_norm_out": 4, "conv_out": 4,
    "double_blocks": 1, "transformer_blocks": 1, "joint_blocks": 1,
    "single_blocks": 2, "single_transformer_blocks": 2, "final_layer": 4, "norm_out": 4, "proj_out": 4,
}  # fmt: skip
_UNET_TITLES = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}


def block_of(layer: str) -> str:
    """The part of the model that a layer belongs to.

    Of a UNet that is one attention or residual module of a level, or the whole middle block; of other models
    the path up to the first number.
    """
    found = _UNET_BLOCK.match(layer) or _NUMBERED.match(layer)
    if found:
        return found[1]
    component, _, path = layer.partition(".")
    flat = _FLAT.match(path)
    if flat and "." not in path:
        return f"{component}.{flat[1]}"
    return ".".join(layer.split(".")[:2])


def in_model_order(blocks: Iterable[str]) -> list[str]:
    """Each block once: text encoders first, then from the input of the model to its output."""
    return sorted(set(blocks), key=_place)


def section_of(block: str) -> tuple[str, str]:
    """What a heading over neighbouring blocks says, and what is left to say of this one."""
    component, _, path = block.partition(".")
    head = _head(path)
    if component == "unet" and head in _UNET_TITLES:
        return _UNET_TITLES[head], _unet_label(path)
    found = re.match(r"^(.*?)[._](\d+)$", path)
    if component.startswith("text_encoder"):
        return component.replace("_", " "), found[2] if found else path.rpartition(".")[2]
    if not found:
        return "other", path.rpartition(".")[2] or block
    return found[1].rpartition(".")[2].replace("_", " "), found[2]


def _unet_label(path: str) -> str:
    """``1.0`` for the first attention of level 1, ``1.0r`` for a residual block, ``1s`` for a sampler."""
    parts = path.split(".")
    if len(parts) < 4:
        return parts[1] if len(parts) > 1 else ""
    if parts[2] == "attentions":
        return f"{parts[1]}.{parts[3]}"
    return f"{parts[1]}.{parts[3]}r" if parts[2] == "resnets" else f"{parts[1]}s"


def _head(path: str) -> str:
    """The first word of a path, without the number that underscores may tie to it."""
    return re.sub(r"_\d+$", "", path.partition(".")[0])


def _place(block: str) -> tuple[int, int, list[tuple[int, str]]]:
    component, _, path = block.partition(".")
    numbers = [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", block)]
    return _PLACES.get(component, len(_PLACES)), _STAGES.get(_head(path), 0), numbers
