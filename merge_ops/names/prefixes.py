"""What programs put around the name of a layer: wrappers of a running model, and prefixes of trainers.

``torch.compile``, DDP, FSDP and checkpointing wrap modules and leave a word of their own in every name below;
trainers put the name of the part of the pipeline in front, some of them twice. None of it is a part of the
model, so that two LoRAs with and without it are of the same weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import LoraFormatError

T = TypeVar("T")
# torch.compile; FSDP, today and before torch 2; activation checkpointing; Lightning and DeepSpeed
_WRAPPER = re.compile(
    r"(?:^|[._])(?:_?orig_mod|_?fsdp_wrapped_module|_?fpw_module|_?checkpoint_wrapped_module|_forward_module)"
    r"(?=[._]|$)"
)
# around a whole model, whatever part of a pipeline it is
OUTER = ("module.", "pipe.", "pipeline.", "base_model.model.", "dit.")
_FLAT_OUTER = re.compile(
    r"_*(?:model_diffusion_model|diffusion_model|base_model_model|module|pipe|pipeline|dit)_+"
)
# words that may also be a part of the model, so that the names that follow must show that they are not
_MAYBE = "model|diffusion_model|base_model|transformer|unet|dit|net|denoiser|backbone|network|module|pipe"
_DOTTED_WORD = re.compile(rf"(?:{_MAYBE})\.+")
_FLAT_WORD = re.compile(rf"_*(?:{_MAYBE})_+")
# a trainer's own prefix of a name without dots, such as "Hunyuan_video_I2V_lora_"
_TRAINER = re.compile(r"[A-Za-z0-9_]*?lora_+")


def strip_wrappers(name: str) -> str:
    """Return a name or key without the words of wrappers and without empty parts."""
    if "orig_mod" in name or "_module" in name:
        name = _WRAPPER.sub("", name).lstrip(".")
    while ".." in name:
        name = name.replace("..", ".")
    return name


def without_wrappers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors under their keys without the words of wrappers.

    Raises:
        LoraFormatError: if the file has one tensor with such words and without.
    """
    clean: dict[str, T] = {}
    for key, tensor in tensors.items():
        name = strip_wrappers(key)
        if name in clean:
            raise LoraFormatError(f"{key} and {name} are one tensor in two spellings; keep one of them")
        clean[name] = tensor
    return clean


def with_clean_patterns(config: dict[str, Any]) -> dict[str, Any]:
    """Return a PEFT configuration whose patterns of ranks and alphas are without the words of wrappers."""
    patterns = {
        key: {strip_wrappers(str(name)): number for name, number in own.items()}
        for key in ("rank_pattern", "alpha_pattern")
        if isinstance(own := config.get(key), dict)
    }
    changed = {key: own for key, own in patterns.items() if own.keys() != config[key].keys()}
    return config | changed if changed else config


def strip_flat(path: str, part: str) -> str:
    """Return a path without dots without the prefixes in front, among them the name of its own part."""
    own = re.compile(rf"_*{part}_+(?!blocks|layers)")
    while (match := _FLAT_OUTER.match(path) or own.match(path)) is not None:
        path = path[match.end() :]
    return path.lstrip("_")


def starts(path: str) -> list[int]:
    """Return the places of a path where the model's own name may begin: after words that may be prefixes."""
    word = _DOTTED_WORD if "." in path else _FLAT_WORD
    places, place = [0], 0
    if "." not in path and (match := _TRAINER.match(path)) is not None:
        place = match.end()
        places.append(place)
    while (match := word.match(path, place)) is not None:
        place = match.end()
        places.append(place)
    return places
