"""Models whose weights stay where they are: ComfyUI streams those of others in while they compute."""

from __future__ import annotations

from typing import Any

from ...merge_ops.errors import ParameterError


def make_static(model: Any, clip: Any | None) -> tuple[Any, Any]:
    """Return clones of MODEL and CLIP that are not streamed; those that are, are loaded a second time.

    As in ComfyUI's own training, gradients cannot pass through a streamed weight.

    Raises:
        ParameterError: if a streamed model cannot be loaded a second time.
    """
    static = _static(model, model, "MODEL")
    if clip is None:
        return static, None
    still = _static(clip, clip.patcher, "CLIP")
    if still.cond_stage_model is not still.patcher.model:
        still.cond_stage_model = still.patcher.model
    return static, still


def _static(part: Any, patcher: Any, what: str) -> Any:
    if not getattr(patcher, "is_dynamic", lambda: False)():
        return part.clone()
    try:
        return part.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ParameterError(
            f"this {what} is streamed (dynamic VRAM), and its loader cannot load it a second time for "
            "training; use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram"
        ) from error
