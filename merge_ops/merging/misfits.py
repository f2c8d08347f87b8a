"""Weights that a model has in another shape than a LoRA: left out by name, unless they are most of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from ..errors import IncompatibleLoraError
from ..lora import BaseDependent, Layer, Lora, WholeWeight
from ..names.parts import is_text

Part = Layer | BaseDependent | WholeWeight
Shape = tuple[int, ...]
_T = TypeVar("_T")

OTHER_SHAPE = "of another shape than the model's weight"  # how the reason begins for what is left out
_LISTED = 3


def leave_out_misfits(lora: Lora, shapes: Mapping[str, Shape]) -> Lora:
    """Return the LoRA without what does not fit the model, which ``unmerged`` and a warning then name.

    Args:
        lora: before or after it is bound to the base model.
        shapes: of the model's weights by layer name, ``(out, in, *kernel)``; a name that is missing counts as
            fitting.

    Raises:
        IncompatibleLoraError: if most of its weights do not fit, in the denoiser or in the text encoders.
    """
    parts: dict[str, Part] = {**lora.whole_weights, **lora.base_dependent, **lora.layers}
    reasons = find_misfits(parts, shapes)
    if not reasons:
        return lora
    refuse_most(lora.name, reasons, [name for name in parts if name in shapes])

    def rest(held: dict[str, _T]) -> dict[str, _T]:
        return {name: part for name, part in held.items() if name not in reasons}

    return replace(
        lora,
        layers=rest(lora.layers),
        base_dependent=rest(lora.base_dependent),
        whole_weights=rest(lora.whole_weights),
        unmerged=lora.unmerged | reasons,
        warnings=(*lora.warnings, describe_misfits(reasons)),
        origin=lora.origin or lora,
    )


def find_misfits(parts: Mapping[str, Part], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Return why each part that does not fit its weight is left out, by name."""
    return {
        name: f"{OTHER_SHAPE}: {_shape_of(part)}, and the weight is {shapes[name]}"
        for name, part in parts.items()
        if name in shapes and not _fits(part, shapes[name])
    }


def refuse_most(lora_name: str, misfits: Mapping[str, str], found: list[str]) -> None:
    """Refuse a LoRA of which most weights that the model has are misfits.

    Raises:
        IncompatibleLoraError: if so, in the denoiser or in the text encoders.
    """
    for in_text in (False, True):
        wrong = [name for name in misfits if is_text(name) == in_text]
        held = [name for name in found if is_text(name) == in_text]
        if 2 * len(wrong) > len(held):
            raise IncompatibleLoraError(
                f"{lora_name}: {len(wrong)} of {len(held)} weights do not fit the model, so the LoRA was made "
                f"for another base model{' or text encoder' if in_text else ''}; {wrong[0]} is "
                f"{misfits[wrong[0]]}"
            )


def describe_misfits(misfits: Mapping[str, str]) -> str:
    """Return one sentence with the names of what is skipped; the rest is used."""
    names = list(misfits)
    listed = "; ".join(f"{name}, {misfits[name]}" for name in names[:_LISTED])
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
        return str(part.weight_shape)
    if isinstance(part, WholeWeight):
        return str(tuple(part.value.shape))
    return f"{part.kind} of {', '.join(str(tuple(tensor.shape)) for tensor in part.tensors)}"
