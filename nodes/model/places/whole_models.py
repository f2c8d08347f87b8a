"""MODEL and CLIP as whole models: every weight with the patches that are on it, read when it is asked for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.extracting import Extracted, extract
from ....merge_ops.formats.quantised import is_beside
from ....merge_ops.formats.whole_model import ModelWeight, ReadRows, WholeModel, layout_of, split_role
from ....merge_ops.names.spelling import canonical_name
from ..bypass_limits import refuse_bypassed
from ..core import (
    StoredWeight,
    hand_to_patch,
    quantised_as,
    read_stored_weights,
    read_widened_shapes,
    text_model,
    with_patches,
)
from ..target import Target
from .key_maps import read_key_maps
from .packed import is_readable, read_true_shape
from .weight_names import choose_stem, list_spellings

_DENOISER, _TEXT = "", "text_encoders."  # what canonical names have in front of the keys of each part
# of a checkpoint without it, as those of SD1.x and SDXL are, it is whatever the memory held
_UNFILLED = "clip_l.transformer.text_projection.weight"
_BUFFERS = 6  # full-size float32 matrices that the difference of one weight takes at most


def read_whole_model(name: str, model: Any, clip: Any | None = None) -> WholeModel:
    """Return a MODEL, and a CLIP if one is given, as a whole model; nothing is read or copied yet.

    Raises:
        ParameterError: if LoRAs are on them by bypass, and so in no weight.
    """
    for part in (model, clip):
        refuse_bypassed(part, "Extract LoRA")
    weights = {
        found: weight
        for part, prefix in ((model, _DENOISER), (clip, _TEXT))
        if part is not None
        for found, weight in _weights_of(part, prefix).items()
    }
    has_unfilled = clip is not None and _UNFILLED in text_model(clip).state_dict()
    beside = {"the text projection of CLIP-L, which most checkpoints lack": 1} if has_unfilled else {}
    return WholeModel(name, weights, "kohya", lambda: None, beside=beside)


def extract_with_comfyui(
    tuned: WholeModel, base: WholeModel, progress: Callable[[int, int, str], None], **options: Any
) -> tuple[Extracted, str]:
    """Extract on ComfyUI's device, or on the CPU if its memory runs out; return a note on that as well.

    Raises:
        MergeError: as ``merge_ops.extract`` does.
    """
    device, note = comfy.model_management.get_torch_device(), ""
    if device.type not in ("cpu", "mps"):  # MPS shares the CPU's memory and lacks what decompositions need
        largest = max((math.prod(weight.shape) for weight in tuned.weights.values()), default=0)
        comfy.model_management.free_memory(largest * 4 * _BUFFERS, device)
        try:
            return extract(tuned, base, device=device, progress=progress, **options), note
        except torch.OutOfMemoryError:
            note = f"There was not enough memory on {device}; the LoRA was extracted on the CPU."
            logging.warning(note)
    return extract(tuned, base, device="cpu", progress=progress, **options), note


def choose_stems(extracted: Extracted, model: Any, clip: Any | None) -> dict[str, str]:
    """Return what the keys of each layer begin with in a file: a spelling that ComfyUI's own maps have."""
    maps = read_key_maps(model, clip)
    spellings = list_spellings(maps.both)
    (lora,) = extracted.loras
    stems = {}
    for name, target in maps.find_targets(lora.layers).items():
        weight = Target(
            target.key.removesuffix(".bias") + ".weight" if name.endswith(".bias") else target.key
        )
        key = lora.layers[name].key
        stems[name] = key if key in spellings.get(weight, ()) else choose_stem(name, weight, spellings)
    return stems


def _weights_of(part: Any, prefix: str) -> dict[str, ModelWeight]:
    widened = read_widened_shapes(part)
    found = {}
    weights = read_stored_weights(part)
    for key, stored in weights.items():
        if key == _UNFILLED or is_beside(key, weights):
            continue
        if prefix == _DENOISER and not key.startswith("diffusion_model."):
            continue  # buffers of the sampling, and models beside the one that LoRAs change
        module, role = split_role(key)
        name = canonical_name(prefix + module)
        if not stored.weight.dtype.is_floating_point and role != "weight":
            continue  # a buffer, or the mark of a format
        shape = widened.get(key) or read_true_shape(key, stored)
        path = module.removeprefix("diffusion_model.")
        open_weight = _opener(part, key, stored, shape)
        found[f"{name}.bias" if role == "bias" else name] = ModelWeight(
            shape,
            _dtype(stored.weight),
            layout_of(role, shape),
            path,
            open_weight,
            is_bare=not role,
        )
    return found


def _dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the numbers as they are stored; a quantised tensor tells that by its layout."""
    layout = quantised_as(weight)
    if "FP8" in layout:
        return torch.float8_e5m2 if "E5M2" in layout else torch.float8_e4m3fn
    return weight.dtype if weight.dtype.is_floating_point else torch.float16


def _opener(part: Any, key: str, stored: StoredWeight, shape: tuple[int, ...]) -> Callable[[], ReadRows]:
    def opened() -> ReadRows:
        weight = with_patches(part, key, hand_to_patch(stored))
        if not is_readable(weight, shape):
            raise IncompatibleLoraError(
                f"{key} is packed ({type(weight).__name__}) and cannot be read; load the model in another "
                "format, such as fp16 or fp8"
            )
        rows = weight.detach().reshape(shape)
        return lambda first, last: rows[first:last] if shape else rows

    return opened
