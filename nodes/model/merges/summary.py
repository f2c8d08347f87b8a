"""The text that a node shows about a merge: what was merged, how, and what was left out."""

from __future__ import annotations

from typing import Any

from ....merge_ops.analysis.repetition import advice_on_sum
from ....merge_ops.merging.merged import Merged
from ....merge_ops.merging.misfits import DOES_NOT_FIT
from ....merge_ops.merging.report import block_lines, block_warnings, dora_beside_plain
from ....merge_ops.names.noise_experts import across_experts
from ....merge_ops.names.parts import is_text
from ..places.fitting import FittedLoras
from .lora_model import list_unnamed_weights

_NOTHING = "No LoRA is on: model and CLIP are unchanged."


def describe_nothing(label: str = "") -> str:
    """Return what a node says that has nothing to merge, after the label of a sweep."""
    return f"{label}: {_NOTHING}" if label else _NOTHING


def list_notes(merged: Merged, fitted: FittedLoras | None = None, *notes: str) -> list[str]:
    """Return a line for each thing that a user should know of a merge: advice, and what was left out."""
    lines = [*merged.added_after, *advice_on_sum(merged), *list_left_out(merged, fitted)]
    lines += filter(None, notes)
    if fitted and fitted.apart:
        lines.append(
            f"{len(fitted.apart)} weights, such as {fitted.apart[0]}, are changed as a whole by one LoRA and "
            "in slices by another; the two are merged separately"
        )
    return lines


def describe_merge(merged: Merged, seconds: float | None = None, label: str = "") -> str:
    """Return method, LoRAs, layers, rank, energy kept, layers skipped and seconds in one line.

    The label of a sweep comes before it.
    """
    how = merged.request.method_name
    skipped = sum(len(lora.unmerged) for lora in merged.loras)
    parts = [f"{how} of {count_loras(len(merged.loras))}", f"{len(merged.layers)} layers"]
    if merged.request.extracted is not None:
        parts[0] = f"LoRA extracted from {merged.loras[0].name}"
    if merged.request.rank is not None:
        kept = merged.energy_kept
        parts += [f"rank {merged.request.rank}", f"{100 * kept:.1f} % of the energy kept"]
    else:
        parts.append("low rank" if all(la.is_low_rank for la in merged.layers.values()) else "full rank")
    if skipped:
        parts.append(f"{skipped} skipped")
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    return (f"{label}: " if label else "") + ", ".join(parts)


def list_blocks(merged: Merged) -> list[str]:
    """Return a line for each LoRA with block strengths: how many layers each strength applies to."""
    return block_lines(merged.loras, merged.request.blocks)


def list_left_out(merged: Merged, fitted: FittedLoras | None = None) -> list[str]:
    """Return a line for everything in the LoRAs that was not merged, or has no place in the model."""
    lines = []
    for lora in merged.loras:
        # a warning names what does not fit the model
        others = [reason for reason in lora.unmerged.values() if not reason.startswith(DOES_NOT_FIT)]
        if others:
            lines.append(f"{lora.name}: {len(others)} entries left out ({'; '.join(sorted(set(others)))})")
        lines += [f"{lora.name}: {warning}" for warning in lora.warnings]
    for lora in fitted.loras if fitted else ():  # others than those of the merge, if it was made before
        lines += [line for each in lora.warnings if (line := f"{lora.name}: {each}") not in lines]
    lines += across_experts(merged.loras) + dora_beside_plain(merged.loras)
    lines += block_warnings(merged.loras, merged.request.blocks)
    if unnamed := list_unnamed_weights(merged):
        lines.append(
            f"{len(unnamed)} whole weights, such as {unnamed[0]}, work with the nodes of this pack only: "
            "LORA_MODEL has no key names for them"
        )
    for name, layers in fitted.missing if fitted else ():
        lines.append(f"{name}: {len(layers)} layers are not in this model or CLIP, such as {layers[0]}")
    return lines


def list_not_applied(merged: Merged, model: Any | None, clip: Any | None) -> list[str]:
    """Return a line for each part that the merge changes and that is not connected."""
    names = dict.fromkeys((*merged.layers, *merged.whole_weights))
    text = sum(map(is_text, names))
    lines = []
    if clip is None and text:
        lines.append(f"CLIP is not connected: {text} text encoder layers are merged but not applied")
    if model is None and (count := len(names) - text):
        lines.append(f"MODEL is not connected: {count} model layers are merged but not applied")
    return lines


def count_loras(count: int) -> str:
    """Return ``1 LoRA`` or ``2 LoRAs``."""
    return f"{count} LoRA{'s' * (count != 1)}"
