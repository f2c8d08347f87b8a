"""Running a merge inside ComfyUI: its device, its memory, its progress bar, its cancel button."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.lora import Lora
from ....merge_ops.merging.merge import carry_out
from ....merge_ops.merging.merged import Merged
from ....merge_ops.merging.request import Request
from ...values.keywords import SPEED_LORAS
from ...values.stack_entries import StackEntry
from ..memory import compute_with_less_memory
from .summary import count_loras

_BUFFERS = 6  # full-size float32 buffers that a merge of one layer holds at most, besides the factors


def run_merge(
    loras: list[Lora],
    entries: list[StackEntry],
    keywords: dict[str, Any],
    scale: float = 1.0,
    on_cpu: bool = False,
    show_progress: Callable[[str], None] | None = None,
    moments: Mapping[str, Tensor] | None = None,
) -> tuple[Merged, str]:
    """Merge on ComfyUI's device, or with less memory if that runs out; return the merge and a note on that.

    ``loras`` are those of ``entries``, perhaps fitted to a model. ``show_progress`` is called with a line of
    text each time that some layers are done. ``moments`` are what a calibrated merge needs. The result holds
    its tensors in CPU memory.

    Raises:
        MergeError: if the LoRAs cannot be merged so.
    """
    _refuse_unbound(loras)
    device = comfy.model_management.get_torch_device()
    if on_cpu or device.type == "mps":  # MPS shares the CPU's memory and lacks what decompositions need
        device = torch.device("cpu")
    if device.type != "cpu":
        comfy.model_management.free_memory(_estimate_memory(loras), device)
    if keywords.get("speed_loras") == SPEED_LORAS[1]:
        keywords = {**keywords, "apart": [False] * len(loras)}
    request = Request.of(
        loras,
        weights=[entry.strength for entry in entries],
        text_weights=[entry.strength_clip for entry in entries],
        blocks=[entry.blocks for entry in entries],
        scale=scale,
        **{name: value for name, value in keywords.items() if name not in ("dtype", "speed_loras")},
    )
    report = _progress_reporter(f"{request.method_name} of {count_loras(len(loras))}", show_progress)

    def compute(where: torch.device, sparing: bool) -> Merged:
        dtype = keywords.get("dtype")
        return carry_out(
            request, loras, moments=moments, device=where, dtype=dtype, progress=report, sparing=sparing
        )

    try:
        return compute_with_less_memory(compute, device)
    finally:
        comfy.model_management.soft_empty_cache()


def _refuse_unbound(loras: list[Lora]) -> None:
    needing = next((lora for lora in loras if lora.base_dependent), None)
    if needing is not None:
        kinds = " and ".join(sorted({adapter.kind for adapter in needing.base_dependent.values()}))
        raise IncompatibleLoraError(
            f"{needing.name} holds {kinds}: what it changes depends on the base model; connect model and clip"
        )


def _progress_reporter(
    what: str, show_progress: Callable[[str], None] | None
) -> Callable[[int, int, str], None]:
    """Return a function that moves ComfyUI's progress bar and stops the merge if it was cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int, _layer: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)
        if show_progress is not None:
            show_progress(f"{what}: {done} of {total} layers")

    return report


def _estimate_memory(loras: list[Lora]) -> int:
    shapes = [layer.matrix_shape for lora in loras for layer in lora.layers.values()]
    largest = max((rows * columns for rows, columns in shapes), default=0)
    return largest * 4 * _BUFFERS
