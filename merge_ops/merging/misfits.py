"""Weights that a model has in another shape than a LoRA: left out by name, unless they are most of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from ..errors import IncompatibleLoraError
from ..lora import BaseDependent, Layer, Lora, WholeWeight
from ..names.parts import flat_name, is_text

Part = Layer | BaseDependent | WholeWeight
Shape = tuple[int, ...]
_T = TypeVar("_T")

DOES_NOT_FIT = "does not fit the model"  # how the reason begins for what is left out
_LISTED = 3
_READS_TEXT = re.compile(r"attn2_to_[kv]$")


def leave_out_misfits(lora: Lora, shapes: Mapping[str, Shape], held: Collection[str] | None = None) -> Lora:
    """Return the LoRA without what does not fit the model, which ``unmerged`` and a warning then name.

    Args:
        lora: before or after it is bound to the base model.
        shapes: of the model's weights by layer name, ``(out, in, *kernel)``; others are not looked at.
        held: names of everything of the LoRA that the model has; those of ``shapes`` by default.

    Raises:
        IncompatibleLoraError: if most of its weights do not fit, in the denoiser or in the text encoders.
    """
    parts: dict[str, Part] = {**lora.whole_weights, **lora.base_dependent, **lora.layers}
    reasons = find_misfits(parts, shapes)
    if not reasons:
        return lora
    refuse_most(lora.name, reasons, [name for name in parts if name in (shapes if held is None else held)])
    return leave_out(lora, reasons)


def leave_out(lora: Lora, reasons: Mapping[str, str]) -> Lora:
    """Return the LoRA without some of its weights, which ``unmerged`` and a warning then name."""
    if not reasons:
        return lora

    def rest(held: dict[str, _T]) -> dict[str, _T]:
        return {name: part for name, part in held.items() if name not in reasons}

    return replace(
        lora,
        layers=rest(lora.layers),
        base_dependent=rest(lora.base_dependent),
        whole_weights=rest(lora.whole_weights),
        unmerged={**lora.unmerged, **reasons},
        warnings=(*lora.warnings, describe_misfits(reasons)),
        origin=lora.origin or lora,
    )


def find_misfits(parts: Mapping[str, Part], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Return why each part that does not fit its weight is left out, by name."""
    return {
        name: f"{DOES_NOT_FIT}: it {_shape_of(part)}, and the model's weight {shapes[name]}"
        for name, part in parts.items()
        if name in shapes and not _fits(part, shapes[name])
    }


def explain_misfit(own: Shape, shape: Shape) -> str:
    """Return why a part of one shape is left out of a weight of another."""
    return f"{DOES_NOT_FIT}: it has shape {own}, and the model's weight {shape}"


def refuse_most(lora_name: str, misfits: Mapping[str, str], found: Collection[str]) -> None:
    """Refuse a LoRA of which most weights that the model has are misfits.

    One for a UNet with another text encoder (SD1.x, SD2.x and SDXL) misfits only where the text comes in.

    Raises:
        IncompatibleLoraError: if so, in the denoiser or in the text encoders.
    """
    inputs = [name for name in found if _READS_TEXT.search(flat_name(name))]
    if inputs and all(name in misfits for name in inputs):
        raise IncompatibleLoraError(
            f"{lora_name} was made for another base model, whose text has another width: {inputs[0]} "
            f"{misfits[inputs[0]]}"
        )
    for in_text in (False, True):
        wrong = [name for name in misfits if is_text(name) == in_text]
        held = [name for name in found if is_text(name) == in_text]
        if 2 * len(wrong) > len(held):
            raise IncompatibleLoraError(
                f"{lora_name}: {len(wrong)} of {len(held)} weights do not fit the model, so the LoRA was "
                f"made for another base model{' or text encoder' if in_text else ''}; {wrong[0]} "
                f"{misfits[wrong[0]]}"
            )


def describe_misfits(misfits: Mapping[str, str]) -> str:
    """Return one sentence with the names of what is skipped; the rest is used."""
    names = list(misfits)
    listed = "; ".join(f"{name} {misfits[name]}" for name in names[:_LISTED])
    more = f"; and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"skipped {len(names)} weight{'s' * (len(names) != 1)}: {listed}{more}"


def _fits(part: Part, shape: Shape) -> bool:
    if not isinstance(part, WholeWeight):
        return part.fits(shape)
    own = tuple(part.value.shape)
    if part.rows:
        return len(own) == len(shape) and own[1:] == shape[1:] and max(part.rows) < shape[0]
    return own == shape


def _shape_of(part: Part) -> str:
    if isinstance(part, Layer):
        return f"has shape {part.weight_shape}"
    if isinstance(part, WholeWeight):
        return f"has shape {tuple(part.value.shape)}"
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in part.tensors)
    return f"is a {part.kind} of {shapes}, made for another model"
