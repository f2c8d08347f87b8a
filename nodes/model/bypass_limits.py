"""What ComfyUI's bypass mode cannot hold, and where it would be lost."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...merge_ops.errors import ParameterError
from ...merge_ops.lora import Layer
from .core_bypass import count_rows, has_bypass, takes_bypass
from .target import Target

WHOLE = "whole weights"


def why_not_bypassed(layer: Layer | None, target: Target, module: nn.Module | None) -> str:
    """Return what a change of a weight is if bypass cannot hold it, and "" if it can.

    ``layer`` is None for a weight that is put in place of the model's.
    """
    if layer is None:
        return WHOLE
    if layer.layout == "vector" or not target.key.endswith(".weight"):
        return "biases, norms and other vectors"
    if layer.padded_to:
        return "layers that a control LoRA widens"
    if layer.stored_in_out or isinstance(module, nn.Embedding):
        return "embeddings"
    if target.part is not None and target.part.dim != 0:
        return "parts of a weight that are cut along its columns"
    if not target.is_whole and count_rows(module) is None:
        return "parts of a weight whose layer does not tell its size"
    return "" if takes_bypass(module) else "layers that are neither linear nor a plain convolution"


def refuse_bypassed(part: Any, what: str) -> None:
    """Refuse a MODEL or CLIP with LoRAs that are in no weight, where ``what`` needs them there.

    Raises:
        ParameterError: if there are any.
    """
    if part is not None and has_bypass(part):
        raise ParameterError(
            f"LoRAs are on this model by bypass, and so in no weight, where {what} needs them; load them "
            "with patching set to auto, or with Load LoRA"
        )
