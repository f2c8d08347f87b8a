"""Patched clones of MODEL and CLIP: what the nodes hand out, and all that ComfyUI expects to find on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...merge_ops.lora import Lora
from ...merge_ops.merging.merged import Merged
from .attachments import Loaded, attach_as_chain, chain_of_merge
from .fitting import FittedLoras, fit_to_model
from .patch import add_merge


class Clones(NamedTuple):
    """Patched clones of the parts that are connected, and lines for the user about them."""

    model: Any | None
    clip: Any | None
    fitted: FittedLoras
    lines: list[str]


def patch_clones(
    merged: Merged,
    fitted: FittedLoras,
    model: Any | None,
    clip: Any | None,
    *,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    chain: Sequence[Loaded] | None = None,
) -> Clones:
    """Add a merge to clones of MODEL and CLIP, and leave on them what a chain of Load LoRA nodes would.

    ``chain`` are the LoRAs in the order of the user's list; by default that of the merge.
    """
    new_model, new_clip = (part.clone() if part is not None else None for part in (model, clip))
    if new_model is not None and strength_model:
        add_merge(new_model, merged, fitted.unet, strength_model)
    if new_clip is not None and strength_clip:
        add_merge(new_clip, merged, fitted.clip, strength_clip)
    lines = attach_as_chain(chain_of_merge(merged) if chain is None else chain, new_model, new_clip)
    return Clones(new_model, new_clip, fitted, lines)


def fit_and_patch_clones(
    merged: Merged,
    model: Any | None,
    clip: Any | None,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
) -> Clones:
    """Patch clones with a merge, whatever names its layers have, and where they are in the model.

    Raises:
        IncompatibleLoraError: if the merge does not fit the model.
    """
    templates = {name: merged.layer(name).template for name in merged.layers}
    whole = Lora("the merged LoRA", templates, whole_weights=merged.whole_weights)
    fitted = fit_to_model([whole], model, clip)
    return patch_clones(
        merged, fitted, model, clip, strength_model=strength_model, strength_clip=strength_clip
    )
