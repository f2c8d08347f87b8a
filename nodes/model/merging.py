"""Running a merge inside ComfyUI: its device, its memory, its progress bar, its cancel button."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ...merge_ops.errors import IncompatibleLoraError
from ...merge_ops.lora import Lora
from ...merge_ops.merging.merge import carry_out
from ...merge_ops.merging.merged import Merged
from ...merge_ops.merging.report import block_lines, block_warnings, dora_beside_plain
from ...merge_ops.merging.request import Request
from ...merge_ops.names.architectures import across_experts
from .lora_model import without_key
from .memory import with_less_memory
from .stacks import StackEntry
from .status import StatusLine
from .targets import Fit

_BUFFERS = 6  # full-size float32 buffers that a merge of one layer holds at most, beside the factors


def run_merge(
    loras: list[Lora],
    entries: list[StackEntry],
    keywords: dict[str, Any],
    scale: float = 1.0,
    on_cpu: bool = False,
    status: StatusLine | None = None,
) -> tuple[Merged, str]:
    """Merge on ComfyUI's device; without memory there in small tiles or on the CPU, and with a line.

    What the result holds is in CPU memory.
    """
    needing = next((lora for lora in loras if lora.base_dependent), None)
    if needing is not None:
        kinds = " and ".join(sorted({adapter.kind for adapter in needing.base_dependent.values()}))
        raise IncompatibleLoraError(
            f"{needing.name} holds {kinds}: what it changes depends on the base model; connect model and clip"
        )
    device = comfy.model_management.get_torch_device()
    if on_cpu or device.type == "mps":  # MPS shares the CPU's memory and lacks what decompositions need
        device = torch.device("cpu")
    if device.type != "cpu":
        comfy.model_management.free_memory(_memory_needed(loras), device)
    try:
        return with_less_memory(
            lambda where, sparing: _merge(loras, entries, keywords, scale, where, sparing, status), device
        )
    finally:
        comfy.model_management.soft_empty_cache()


def summary(
    merged: Merged | None,
    fitted: Fit | None = None,
    note: str = "",
    seconds: float | None = None,
    label: str = "",
) -> str:
    """A few lines for the node: what was merged, how, and what was left out; the label of a sweep first."""
    swept = f"{label}: " if label else ""
    if merged is None:
        return f"{swept}No LoRA is on: model and CLIP are unchanged."
    lines = [swept + result_line(merged, seconds)]
    lines += left_out(merged, fitted)
    if note:
        lines.append(note)
    if fitted and fitted.apart:
        lines.append(
            f"{len(fitted.apart)} weights, such as {fitted.apart[0]}, are changed as a whole by one LoRA and "
            "in slices by another; the two are merged apart"
        )
    return "\n".join(lines)


def result_line(merged: Merged, seconds: float | None = None) -> str:
    """Method, LoRAs, layers, rank, energy kept, layers skipped and seconds, in one line."""
    how = merged.request.method_name
    skipped = sum(len(lora.unmerged) for lora in merged.loras)
    parts = [f"{how} of {_loras(len(merged.loras))}", f"{len(merged.layers)} layers"]
    if merged.request.rank is not None:
        kept = merged.energy_kept
        parts += [f"rank {merged.request.rank}", f"{100 * kept:.1f} % of the energy kept"]
    else:
        parts.append("low rank" if all(la.is_low_rank for la in merged.layers.values()) else "full rank")
    if skipped:
        parts.append(f"{skipped} skipped")
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    return ", ".join(parts)


def left_out(merged: Merged, fitted: Fit | None = None) -> list[str]:
    """A line for whatever of the LoRAs was not merged, or has no place in the model."""
    lines = []
    for lora in merged.loras:
        if lora.unmerged:
            kinds = sorted(set(lora.unmerged.values()))
            lines.append(f"{lora.name}: {len(lora.unmerged)} entries left out ({'; '.join(kinds)})")
        lines += [f"{lora.name}: {warning}" for warning in lora.warnings]
    lines += across_experts(merged.loras) + dora_beside_plain(merged.loras)
    lines += block_lines(merged.loras, merged.request.blocks) + block_warnings(
        merged.loras, merged.request.blocks
    )
    if silent := without_key(merged):
        lines.append(
            f"{len(silent)} weights that are held whole, such as {silent[0]}, are for this pack's own nodes: "
            "a LORA_MODEL has no names for them"
        )
    for name, layers in fitted.missing if fitted else ():
        lines.append(f"{name}: {len(layers)} layers are not in this model or CLIP, such as {layers[0]}")
    return lines


def _merge(
    loras: list[Lora],
    entries: list[StackEntry],
    keywords: dict[str, Any],
    scale: float,
    device: torch.device,
    sparing: bool,
    status: StatusLine | None = None,
) -> Merged:
    bar = comfy.utils.ProgressBar(1)
    how = keywords.get("combination_type") or keywords.get("method")

    def progress(done: int, total: int, _layer: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        if status is not None:
            status.progress(
                f"{how} of {_loras(len(loras))}: {done} of {total} layers, {status.seconds:.0f} s"
            )

    asked = {name: value for name, value in keywords.items() if name != "dtype"}
    request = Request.of(
        loras,
        weights=[entry.strength for entry in entries],
        text_weights=[entry.strength_clip for entry in entries],
        blocks=[entry.blocks for entry in entries],
        scale=scale,
        **asked,
    )
    dtype = keywords.get("dtype")
    return carry_out(request, loras, device=device, dtype=dtype, progress=progress, sparing=sparing)


def _loras(count: int) -> str:
    return f"{count} LoRA{'s' * (count != 1)}"


def _memory_needed(loras: list[Lora]) -> int:
    shapes = [layer.matrix_shape for lora in loras for layer in lora.layers.values()]
    largest = max((rows * columns for rows, columns in shapes), default=0)
    return largest * 4 * _BUFFERS
