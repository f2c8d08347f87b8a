"""Finding the places of merged layers in a diffusion model: in which rows of which tensors they are."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import IncompatibleLoraError
from ..formats.layer_index import LayerIndex, Spans
from ..formats.quantised import packed_format
from ..merging.merged import Merged
from ..merging.misfits import DOES_NOT_FIT, explain_misfit, refuse_most
from ..names.checkpoint import DENOISER
from ..names.parts import OTHER_DENOISERS, is_text
from ..names.recognise import guess
from .base_model import BaseModel
from .places import Place, Places, quantisations, refuse_packed

_ABSENT = f"{DOES_NOT_FIT}, which has no such layer"


def find_checkpoint_places(base: BaseModel, merged: Merged) -> tuple[Places, dict[str, str]]:
    """Return the places of the merged layers, and why others are left out, by layer.

    Left out are layers that the model does not have, or has in another shape, unless they are most; and
    those of text encoders or denoisers that the file does not hold.

    Raises:
        IncompatibleLoraError: if most layers do not fit, if two layers are one weight, or naming a tensor
            that is quantised or widened.
    """
    packed = packed_format(base.shards)
    if packed is not None:
        raise IncompatibleLoraError(
            f"{base.path.name} is quantised ({packed}), so that no LoRA can be added to its weights; fuse "
            "into the original weights"
        )
    index = LayerIndex(base.shards)
    names = dict.fromkeys((*merged.whole_weights, *merged.layers))
    spans = {name: index.find_fused(name, _stem(merged, name)) for name in names}
    stored = quantisations(base)
    reasons: dict[str, str] = {}
    places: dict[tuple[str, str], list[Place]] = {}
    for name, found in spans.items():
        for span in found:
            refuse_packed(base, stored[span.component, span.entry.name], span.entry)
        reason = _misfit(merged, name, found)
        if reason is not None:
            reasons[name] = reason
            continue
        for key, place in _places_of(merged, name, found):
            _refuse_twice(place, places.setdefault(key, []), key[1])
            places[key].append(place)
    _refuse_other_model(base, merged, index, spans, reasons)
    for name in reasons:
        if _part_of(name) not in index.parts:
            reasons[name] = f"{DOES_NOT_FIT}, which has no {_part_of(name).replace('_', ' ')}"
    return {key: tuple(each) for key, each in places.items()}, reasons


def _stem(merged: Merged, name: str) -> str:
    """What the LoRA's file calls the module of a layer."""
    if name in merged.layers:
        return merged.layer(name).template.key
    return merged.whole_weights[name].key


def _misfit(merged: Merged, name: str, spans: Spans) -> str | None:
    """Why a layer is left out; None if it can be added."""
    if not spans:
        return _ABSENT
    shape = (sum(span.shape[0] for span in spans), *spans[0].shape[1:]) if spans[0].shape else ()
    if name in merged.layers:
        layer = merged.layer(name)
        if layer.padded_to and layer.padded_to != shape:
            raise IncompatibleLoraError(
                f"{name} widens the model's weight from {shape} to {layer.padded_to}, as control LoRAs do, "
                "and a fused model has the shapes of the base; load it beside the model instead"
            )
        own = layer.template.weight_shape
        if own != shape and not layer.template.fits(shape):
            return explain_misfit(own, shape)
    if name in merged.whole_weights:
        whole = merged.whole_weights[name]
        own = tuple(whole.value.shape)
        if own != shape or whole.rows:
            return explain_misfit(own, shape)
    return None


def _places_of(merged: Merged, name: str, spans: Spans) -> list[tuple[tuple[str, str], Place]]:
    turned = name in merged.layers and merged.layer(name).template.layout == "fan_in_fan_out"
    found, start = [], 0
    for span in spans:
        length = span.shape[0] if span.shape else 1
        part = None if len(spans) == 1 else (start, length)
        place = Place(name, turned != span.turned, span.rows, part, span.swapped)
        found.append(((span.component, span.entry.name), place))
        start += length
    return found


def _refuse_twice(place: Place, others: Sequence[Place], tensor: str) -> None:
    for other in others:
        if other.rows == place.rows:
            raise IncompatibleLoraError(f"{other.layer} and {place.layer} both match {tensor} of the base")


def _refuse_other_model(
    base: BaseModel, merged: Merged, index: LayerIndex, spans: dict[str, Spans], reasons: dict[str, str]
) -> None:
    """Refuse a merge of which most is not in the parts of a pipeline that the model has."""
    inside = [name for name in spans if _part_of(name) in index.parts]
    if not any(spans[name] for name in inside if not is_text(name)) and (
        any(not is_text(name) for name in inside) or not any(spans.values())
    ):
        raise IncompatibleLoraError(_nothing_fits(base, merged, list(spans)))
    misfits = {name: reason for name, reason in reasons.items() if name in inside}
    refuse_most(" and ".join(lora.name for lora in merged.loras[:3]), misfits, inside)


def _part_of(name: str) -> str:
    """The part of a pipeline that a layer is in, as ``LayerIndex`` calls it."""
    part, dot, _ = name.partition(".")
    is_named = dot and (part in OTHER_DENOISERS or part.startswith("text_encoder"))
    return part if is_named and part != "prior" else DENOISER


def _nothing_fits(base: BaseModel, merged: Merged, names: Sequence[str]) -> str:
    guessed = guess(merged.loras[0])
    title = f" ({guessed.title})" if guessed else ""
    return (
        f"none of the {len(names)} merged layers is in {base.path.name} (the first are "
        f"{', '.join(names[:3])}); the LoRAs are for another base model{title}"
    )
