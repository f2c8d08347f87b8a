"""The metadata of LoRA files on MODEL and CLIP, where nodes of ComfyUI look for it.

Get IC-LoRA Parameters reads by what factor a control LoRA wants its guide scaled down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....merge_ops.lora import Lora
from ....merge_ops.merging.merged import Merged
from ...values.stack_entries import StackEntry
from ..core import attach_metadata

_READ_BY_COMFYUI = ("reference_downscale_factor",)  # also with a prefix, such as ``ss_``


@dataclass(frozen=True, slots=True)
class Loaded:
    """A LoRA with its strengths, as a Load LoRA node of its own would have them."""

    lora: Lora
    strength: float
    strength_clip: float


def chain_of_entries(entries: Sequence[StackEntry]) -> list[Loaded]:
    """Return the chain of Load LoRA nodes that a stack stands for."""
    return [Loaded(entry.lora, entry.strength, entry.strength_clip) for entry in entries]


def chain_of_merge(merged: Merged) -> list[Loaded]:
    """Return the chain of Load LoRA nodes that a merge stands for."""
    asked = merged.request
    return [Loaded(*each) for each in zip(merged.loras, asked.weights, asked.text_weights, strict=True)]


def attach_as_chain(chain: Sequence[Loaded], model: Any | None, clip: Any | None) -> list[str]:
    """Leave on (cloned) MODEL and CLIP what a chain of Load LoRA nodes leaves: the last metadata there is.

    Returns a line for each earlier LoRA whose parameters ComfyUI cannot find any more because of that.
    """
    # without CLIP the chain is one of Load LoRA (Model), which passes on a LoRA at strength 0
    used = [one for one in chain if one.strength or (clip is not None and one.strength_clip)]
    stating = [one.lora for one in used if one.lora.metadata]
    if not stating:
        return []
    last = stating[-1]
    for part in (model, clip):
        if part is not None:
            attach_metadata(part, last.metadata)
    return _list_hidden(stating[:-1], last)


def _list_hidden(earlier: list[Lora], last: Lora) -> list[str]:
    lines = []
    for lora in earlier:
        for key in _READ_BY_COMFYUI:
            value, found = _value(lora, key), _value(last, key)
            if value is not None and value != found:
                lines.append(
                    f"{lora.name} has {key} {value}, but Get IC-LoRA Parameters reads the last LoRA, "
                    f"{last.name}, as after a chain of Load LoRA nodes; put {lora.name} last"
                )
    return lines


def _value(lora: Lora, key: str) -> str | None:
    return next((value for name, value in lora.metadata.items() if name.endswith(key)), None)
