"""What the patches on ComfyUI's models hold, which it does not promise to keep.

As in ``core.py``, each thing has one function here, and a check in ``tests/nodes/checks_core_loaded.py``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.weight_adapter
import torch
from torch import Tensor

from .core import patcher_of
from .core_bypass import has_bypass
from .target import Part, Target

# what each kind of adapter keeps, in its order, by the end of the key that it has in a file
_KEPT = {
    "lora": (
        ".lora_up.weight", ".lora_down.weight", ".alpha", ".lora_mid.weight", ".dora_scale", ".reshape_weight"
    ),
    "loha": (
        ".hada_w1_a", ".hada_w1_b", ".alpha", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2",
        ".dora_scale",
    ),
    "lokr": (
        ".lokr_w1", ".lokr_w2", ".alpha", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2",
        ".dora_scale",
    ),
    "glora": (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight", ".alpha", ".dora_scale"),
    "oft": (".oft_blocks", ".rescale", ".alpha", ".dora_scale"),
    "boft": (".oft_blocks", ".rescale", ".alpha", ".dora_scale"),
}  # fmt: skip
_HOOKS = "hooks"
_BYPASS = "a bypass loader"


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """One entry of a weight's patches. ComfyUI first multiplies the weight, or the part, by ``scale``."""

    target: Target
    strength: float
    value: Any
    scale: float
    entry: tuple[Any, ...]  # as ComfyUI holds it


def read_patches(part: Any) -> dict[str, list[Patch]]:
    """Return the patches on a MODEL or CLIP by the key of their weight, in the order they are applied in."""
    return {key: [_read(key, entry) for entry in held] for key, held in patcher_of(part).patches.items()}


def put_patches(part: Any, patches: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
    """Give a (cloned) MODEL or CLIP these patches, in place of its own."""
    patcher = patcher_of(part)
    patcher.patches = {key: list(held) for key, held in patches.items() if held}
    patcher.patches_uuid = uuid.uuid4()


def list_entries(part: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Return the patches on a MODEL or CLIP as ComfyUI holds them."""
    return {key: list(held) for key, held in patcher_of(part).patches.items()}


def adapter_tensors(value: Any, own: Sequence[type] = ()) -> dict[str, Tensor] | None:
    """Return what one of ComfyUI's adapters was made from, by the end of its key in a file; None for others.

    ``own`` are subclasses that keep the same as the class they are made from.
    """
    if type(value) not in (*comfy.weight_adapter.adapters, *own):
        return None
    ends = _KEPT[value.name]
    return {
        end: torch.as_tensor(kept)
        if isinstance(kept, Tensor | list)
        else torch.tensor(kept, dtype=torch.float64)
        for end, kept in zip(ends, value.weights, strict=True)
        if kept is not None
    }


def difference_of(value: Any) -> Tensor | None:
    """Return the difference of a weight or bias that a LoRA's file holds whole; None for another patch."""
    if not isinstance(value, tuple) or not value:
        return None
    kind, held = ("diff", value) if len(value) == 1 else (value[0], value[1])
    is_plain = kind == "diff" and len(held) == 1 and isinstance(held[0], Tensor)
    return held[0] if is_plain else None


def replaced_by(value: Any) -> Tensor | None:
    """Return the weight that a patch puts in place of the model's; None for another patch."""
    is_set = isinstance(value, tuple) and len(value) == 2 and value[0] == "set"
    return value[1][0] if is_set else None


def is_addition(value: Any) -> bool:
    """Return whether a patch, other than an adapter, adds what does not depend on the weight it is added to.

    True for the weights of another model in a model merge, and for differences that do not widen the weight.
    """
    if isinstance(value, list):
        return True
    as_lora = isinstance(value, tuple) and len(value) == 2 and value[0] == "model_as_lora"
    return as_lora or difference_of(value) is not None


def loaded_keys_of(value: Any) -> set[str] | None:
    """Return the keys of the file that an adapter came from: one set for all that was loaded in one go."""
    keys = getattr(value, "loaded_keys", None)
    return keys if isinstance(keys, set) else None


def list_other_loras(part: Any) -> list[str]:
    """List the ways besides patches in which LoRAs are on a MODEL or CLIP: ``hooks``, ``a bypass loader``."""
    patcher = patcher_of(part)
    hooked = getattr(patcher, "hook_patches", None) or getattr(patcher, "forced_hooks", None)
    return [way for way, is_there in ((_HOOKS, hooked), (_BYPASS, has_bypass(part))) if is_there]


def _read(key: str, entry: tuple[Any, ...]) -> Patch:
    strength, value, scale, offset, function = entry
    part = None if offset is None else Part(*offset)
    return Patch(Target(key, part, function), strength, value, scale, entry)
