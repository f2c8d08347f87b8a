"""Patched clones of MODEL and CLIP with a merge that was not made for this model, or was made for another."""

from __future__ import annotations

from typing import Any

from ...merge_ops.lora import Lora
from ...merge_ops.merging.merged import Merged
from .fitting import FittedLoras, fit_to_model
from .patch import add_merge


def patch_clones(
    merged: Merged,
    model: Any | None,
    clip: Any | None,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
) -> tuple[Any | None, Any | None, FittedLoras]:
    """Return clones with the merge added, whatever names its layers have, and where they are in the model.

    Raises:
        IncompatibleLoraError: if the merge does not fit the model.
    """
    templates = {name: merged.layer(name).template for name in merged.layers}
    whole = Lora("the merged LoRA", templates, whole_weights=merged.whole_weights)
    fitted = fit_to_model([whole], model, clip)
    new_model, new_clip = (part.clone() if part is not None else None for part in (model, clip))
    if new_model is not None and strength_model:
        add_merge(new_model, merged, fitted.unet, strength_model)
    if new_clip is not None and strength_clip:
        add_merge(new_clip, merged, fitted.clip, strength_clip)
    return new_model, new_clip, fitted
