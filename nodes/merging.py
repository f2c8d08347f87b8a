"""Running a merge inside ComfyUI: its device, its memory, its progress bar, its cancel button."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ..merge_ops.merge import merge
from ..merge_ops.merged import Merged
from ..merge_ops.types import Lora
from .memory import with_less_memory
from .stacks import StackEntry
from .targets import Fit

_BUFFERS = 6  # full-size float32 buffers that a merge of one layer holds at most, beside the factors


def run_merge(
    loras: list[Lora],
    entries: list[StackEntry],
    keywords: dict[str, Any],
    scale: float = 1.0,
    on_cpu: bool = False,
) -> tuple[Merged, str]:
    """Merge on ComfyUI's device; without memory there in small tiles or on the CPU, and with a line.

    What the result holds is in CPU memory.
    """
    device = comfy.model_management.get_torch_device()
    if on_cpu or device.type == "mps":  # MPS shares the CPU's memory and lacks what decompositions need
        device = torch.device("cpu")
    if device.type != "cpu":
        comfy.model_management.free_memory(_memory_needed(loras), device)
    try:
        return with_less_memory(lambda where: _merge(loras, entries, keywords, scale, where), device)
    finally:
        comfy.model_management.soft_empty_cache()


def summary(merged: Merged | None, fitted: Fit | None = None, note: str = "", label: str = "") -> str:
    """A few lines for the node: what was merged, how, and what was left out; the label of a sweep first."""
    swept = f"{label}: " if label else ""
    if merged is None:
        return f"{swept}No LoRA is on: model and CLIP are unchanged."
    how = merged.combination_type or merged.settings.method.name
    ranks = "low rank" if all(layer.is_low_rank for layer in merged.results.values()) else "full rank"
    count = len(merged.loras)
    lines = [f"{swept}{how} of {count} LoRA{'s' * (count != 1)}, {len(merged.layers)} layers, {ranks}"]
    lines += left_out(merged, fitted)
    if note:
        lines.append(note)
    if fitted and fitted.apart:
        lines.append(
            f"{len(fitted.apart)} weights, such as {fitted.apart[0]}, are changed as a whole by one LoRA and "
            "in slices by another; the two are merged apart"
        )
    return "\n".join(lines)


def left_out(merged: Merged, fitted: Fit | None = None) -> list[str]:
    """A line for whatever of the LoRAs was not merged, or has no place in the model."""
    lines = []
    for lora in merged.loras:
        if lora.unmerged:
            kinds = sorted(set(lora.unmerged.values()))
            lines.append(f"{lora.name}: {len(lora.unmerged)} entries left out ({'; '.join(kinds)})")
        lines += [f"{lora.name}: {warning}" for warning in lora.warnings]
    for name, layers in fitted.missing if fitted else ():
        lines.append(f"{name}: {len(layers)} layers are not in this model or CLIP, such as {layers[0]}")
    return lines


def _merge(
    loras: list[Lora], entries: list[StackEntry], keywords: dict[str, Any], scale: float, device: torch.device
) -> Merged:
    bar = comfy.utils.ProgressBar(1)

    def progress(done: int, total: int, _layer: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return merge(
        loras,
        weights=[entry.strength for entry in entries],
        text_weights=[entry.strength_clip for entry in entries],
        scale=scale,
        device=device,
        progress=progress,
        **keywords,
    )


def _memory_needed(loras: list[Lora]) -> int:
    largest = max(
        rows * columns for lora in loras for rows, columns in (la.matrix_shape for la in lora.layers.values())
    )
    return largest * 4 * _BUFFERS
