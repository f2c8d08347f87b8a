"""Patched clones of MODEL and CLIP: what the nodes hand out, and all that ComfyUI expects to find on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ....merge_ops.lora import Lora
from ....merge_ops.merging.merged import Merged
from ...values.keywords import AUTO, BYPASS, ONE_PATCH
from ..core import is_patched_by_pack
from ..places.fitting import FittedLoras, fit_to_model
from ..target import Target
from .attachments import Loaded, attach_as_chain, chain_of_merge
from .bypass import add_merge_by_bypass
from .one_patch import add_one_patch
from .patch import add_merge


class Clones(NamedTuple):
    """Patched clones of the parts that are connected, and lines for the user about them."""

    model: Any | None
    clip: Any | None
    fitted: FittedLoras
    lines: list[str]
    how: list[str]  # how the merge got onto them, where it is not as by Load LoRA nodes


def patch_clones(
    merged: Merged,
    fitted: FittedLoras,
    model: Any | None,
    clip: Any | None,
    *,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    chain: Sequence[Loaded] | None = None,
    patching: str = AUTO,
) -> Clones:
    """Add a merge to clones of MODEL and CLIP, and leave on them what a chain of Load LoRA nodes would.

    ``chain`` are the LoRAs in the order of the user's list; by default that of the merge.
    """
    new_model, new_clip = (part.clone() if part is not None else None for part in (model, clip))
    lines: list[str] = []
    how: list[str] = []
    for what, part, targets, strength in (
        ("model", new_model, fitted.unet, strength_model),
        ("CLIP", new_clip, fitted.clip, strength_clip),
    ):
        if part is not None and strength and (targets or what == "model"):
            said, others = _add(part, merged, targets, strength, patching)
            how += [f"{what}: {said}"] if said else []
            lines += [f"{what}: {line}" for line in others]
    lines += attach_as_chain(chain_of_merge(merged) if chain is None else chain, new_model, new_clip)
    return Clones(new_model, new_clip, fitted, lines, how)


def _add(
    part: Any, merged: Merged, targets: dict[str, Target], strength: float, patching: str
) -> tuple[str, list[str]]:
    """Add a merge in a way of ``PATCHING``; return what was done, and what a user should know of it."""
    if patching == BYPASS:
        return add_merge_by_bypass(part, merged, targets, strength)
    by_pack = patching == AUTO and is_patched_by_pack(part) and len(merged.loras) > 1
    if by_pack or patching == ONE_PATCH:
        said = add_one_patch(part, merged, targets, strength)
        return said + (", which the pack that loaded it computes at every step" if by_pack else ""), []
    add_merge(part, merged, targets, strength)
    return "", []


def fit_and_patch_clones(
    merged: Merged,
    model: Any | None,
    clip: Any | None,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    patching: str = AUTO,
) -> Clones:
    """Patch clones with a merge, whatever names its layers have, and where they are in the model.

    Raises:
        IncompatibleLoraError: if the merge does not fit the model.
    """
    templates = {name: merged.layer(name).template for name in merged.layers}
    whole = Lora("the merged LoRA", templates, whole_weights=merged.whole_weights)
    fitted = fit_to_model([whole], model, clip, bypass=patching == BYPASS)
    return patch_clones(
        merged,
        fitted,
        model,
        clip,
        strength_model=strength_model,
        strength_clip=strength_clip,
        patching=patching,
    )
