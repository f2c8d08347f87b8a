"""Files of cloneofsimo's ``lora`` (pivotal tuning): keys are indices into the modules of SD1.x.

``unet:12:down`` is the down factor of the 12th linear layer found inside the classes that the metadata lists,
in the order in which diffusers of that time built the model: within a transformer block attn1, ff, attn2, and
the middle block last, since it was assigned last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from torch import Tensor

from ..adapters.lora import low_rank
from ..adapters.module import RawModule
from ..adapters.reading import UNRECOGNISED
from ..errors import LoraFormatError
from ..lora import Layer, Lora
from .warned import warnings_of_layers

_KEY = re.compile(r"^(unet|text_encoder):(\d{1,6}):(up|down)$")
_UNET_CLASSES = {"CrossAttention", "Attention", "GEGLU"}
_MAX_LIST = 10_000  # characters; what is longer is cut and then is no list
_LEVELS = (("down_blocks", (0, 1, 2), 2), ("up_blocks", (1, 2, 3), 3), ("mid_block", (None,), 1))


def is_pti(keys: list[str]) -> bool:
    return any(_KEY.match(key) for key in keys)


def from_pti(name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Lora:
    """Return the LoRA of such a file; ``name`` is what it is called."""
    modules: dict[str, RawModule] = {}
    unmerged = {}
    for key, tensor in tensors.items():
        role = _role(key)
        if role is None:
            unmerged[key] = "textual-inversion embedding, not a LoRA" if key.startswith("<") else UNRECOGNISED
            continue
        component, index, half = role
        names = pti_layers(component, metadata)
        if index >= len(names):
            raise LoraFormatError(f"{key} has no place in SD1.x, which has {len(names)} such modules")
        modules.setdefault(names[index], RawModule(f"{component}:{index}")).tensors[half] = tensor
    layers: dict[str, Layer] = {layer: low_rank(module, 1.0) for layer, module in modules.items()}
    warnings = tuple(warnings_of_layers(layers, {}, False))
    return Lora(name, layers, "pti", metadata, unmerged, warnings)


def _role(key: str) -> tuple[str, int, str] | None:
    """``(component, index, role)`` of a key, or None for anything else in the file."""
    match = _KEY.match(key)
    return (match[1], int(match[2]), match[3]) if match else None


def pti_layers(component: str, metadata: dict[str, str]) -> list[str]:
    """Canonical names by index, for the target classes that the file's metadata lists."""
    known = _UNET_CLASSES if component == "unet" else {"CLIPAttention"}
    listed = metadata.get(component, "")[:_MAX_LIST]
    try:
        classes = set(map(str, json.loads(listed))) if listed else known
    except (ValueError, TypeError, RecursionError) as error:
        raise LoraFormatError(f"the metadata {component!r} is not a list of classes") from error
    if not classes <= known:
        raise LoraFormatError(
            f"the order of the modules in {sorted(classes - known)} is not known; convert the file "
            "to diffusers or kohya names first"
        )
    return list(_unet_modules(classes) if component == "unet" else _text_modules())


def _unet_modules(classes: set[str]) -> Iterator[str]:
    attention = bool(classes & {"CrossAttention", "Attention"})
    for block, levels, count in _LEVELS:
        for level in levels:
            where = block if level is None else f"{block}.{level}"
            for i in range(count):
                inner = f"unet.{where}.attentions.{i}.transformer_blocks.0"
                if attention:
                    yield from (f"{inner}.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
                if "GEGLU" in classes:
                    yield f"{inner}.ff.net.0.proj"
                if attention:
                    yield from (f"{inner}.attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))


def _text_modules() -> Iterator[str]:
    for layer in range(12):
        where = f"text_encoder.text_model.encoder.layers.{layer}.self_attn"
        yield from (f"{where}.{name}" for name in ("k_proj", "v_proj", "q_proj", "out_proj"))
