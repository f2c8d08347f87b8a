"""Models whose weights stay where they are: ComfyUI streams those of others in while they compute."""

from __future__ import annotations

from typing import Any

from ...merge_ops.errors import ParameterError
from .bypass_limits import refuse_bypassed
from .core import clone_static, is_streamed, patcher_of, text_model, use_text_model


def make_static(model: Any, clip: Any | None) -> tuple[Any, Any]:
    """Return clones of MODEL and CLIP that are not streamed; those that are, are loaded a second time.

    As in ComfyUI's own training, gradients cannot pass through a streamed weight.

    Raises:
        ParameterError: if a streamed model cannot be loaded a second time.
    """
    static = _static(model, "MODEL", "for training")
    if clip is None:
        return static, None
    still = _static(clip, "CLIP", "for training")
    if text_model(still) is not patcher_of(still).model:
        use_text_model(still)
    return static, still


def make_static_model(model: Any) -> Any:
    """Return a clone of a MODEL that is not streamed, for hooks: ComfyUI's cannot change a streamed weight.

    Raises:
        ParameterError: if a streamed model cannot be loaded a second time.
    """
    return _static(model, "MODEL", "for strengths that change over the sampling")


def _static(part: Any, what: str, purpose: str) -> Any:
    if not is_streamed(part):
        return part.clone()
    refuse_bypassed(part, f"loading it a second time {purpose}")
    try:
        return clone_static(part)
    except RuntimeError as error:
        raise ParameterError(
            f"this {what} is streamed (dynamic VRAM), and its loader cannot load it a second time "
            f"{purpose}; use one of ComfyUI's own loaders, or start ComfyUI with --disable-dynamic-vram"
        ) from error
