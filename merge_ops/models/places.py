"""Finding the place of each merged layer of a language model: which tensor its delta is added to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import IncompatibleLoraError
from ..formats.header import Entry
from ..formats.quantised import Quantisation
from ..merging.merged import Merged
from ..merging.misfits import explain_misfit, refuse_most
from ..names.language import has_conv1d, is_conv1d
from .base_model import BaseModel

_SUFFIX = ".weight"
_WITH_HEAD = ("LM", "ForConditionalGeneration", "ForPreTraining")


Rows = tuple[int, int]  # (start, length)


@dataclass(frozen=True, slots=True)
class Place:
    """A layer whose delta is added to a tensor: to all of it or to some rows, and how it lies there."""

    layer: str
    transposed: bool = False
    rows: Rows | None = None  # of the tensor that are changed; None for all
    part: Rows | None = None  # of the layer that they are; None for all
    swapped: bool = False  # the two halves of the layer's rows are the other way round in the tensor


# (part of a pipeline, tensor) -> what is added to it, in this order
Places = dict[tuple[str, str], tuple[Place, ...]]


def find_places(base: BaseModel, merged: Merged) -> tuple[Places, dict[str, str]]:
    """Return the place of every merged layer, and why others are left out, by layer.

    Left out are layers whose tensor has another shape, unless they are most.

    A layer name may have one leading component (``model.``, ``transformer.``) that the tensor name lacks,
    or the other way round.

    Raises:
        IncompatibleLoraError: naming a layer that matches no tensor or several, a tensor of an unsupported
            dtype, or one that the model uses as embedding and output head at once, or if most do not fit.
    """
    # a layer has the name of its module; a bias has the name of its tensor
    stems = [name.removesuffix(_SUFFIX) for name in base.tensors if name.endswith((_SUFFIX, ".bias"))]
    places: dict[str, Place] = {}
    misfits: dict[str, str] = {}
    layers = dict.fromkeys((*merged.whole_weights, *merged.layers))
    stored = quantisations(base)
    for layer, stem in _matched(base, layers, stems).items():
        name = stem if stem.endswith(".bias") else stem + _SUFFIX
        if name in places:
            raise IncompatibleLoraError(f"{places[name].layer} and {layer} both match {name} of the base")
        places[name] = Place(layer, _is_transposed(base, merged, layer, stem))
        refuse_packed(base, stored["", name], base.tensors[name])
        reason = _check(base, merged, places[name], base.tensors[name])
        if reason is not None:
            misfits[layer] = reason
    refuse_most(" and ".join(lora.name for lora in merged.loras[:3]), misfits, layers)
    fitting = {name: place for name, place in places.items() if place.layer not in misfits}
    return {("", name): (place,) for name, place in fitting.items()}, misfits


def quantisations(base: BaseModel) -> dict[tuple[str, str], Quantisation]:
    """Return how the file of each tensor stores its weights, by the part of a pipeline and the name."""
    by_shard = [(shard, Quantisation(shard)) for shard in base.shards]
    return {(shard.component, entry.name): how for shard, how in by_shard for entry in shard.entries}


def refuse_packed(base: BaseModel, stored: Quantisation, entry: Entry) -> None:
    """Refuse a tensor of a format that no delta can be added to.

    Raises:
        IncompatibleLoraError: naming the format.
    """
    reason = stored.why_not(entry)
    if reason is not None:
        raise IncompatibleLoraError(
            f"{entry.name} of {base.path.name} is quantised ({reason}); fuse into the original weights"
        )


def _matched(base: BaseModel, layers: Iterable[str], stems: list[str]) -> dict[str, str]:
    """Return the stem of the one tensor that each layer matches."""
    known, by_tail = set(stems), defaultdict(list)
    for stem in stems:
        by_tail[_tail(stem)].append(stem)
    matched = {}
    for layer in layers:
        candidates = (
            [layer] if layer in known else by_tail[layer] or [s for s in [_tail(layer)] if s in known]
        )
        if not candidates:
            raise IncompatibleLoraError(
                f"{base.path.name} has no weight for the layer {layer}{_why(base, layer)}"
            )
        if len(candidates) > 1:
            raise IncompatibleLoraError(f"{layer} could be {' or '.join(candidates[:3])} of {base.path.name}")
        matched[layer] = candidates[0]
    return matched


def _tail(name: str) -> str:
    """Return a name without its first component."""
    return name.partition(".")[2]


def _why(base: BaseModel, layer: str) -> str:
    if layer.endswith("lm_head") and _is_tied(base):
        return " of its own, because it is tied to the embedding; leave it out of the LoRA"
    return "; the LoRA is for another base model"


def _is_transposed(base: BaseModel, merged: Merged, layer: str, stem: str) -> bool:
    """Return True if the tensor stores its weight transposed relative to the adapter's file.

    PEFT has one ``fan_in_fan_out`` for all layers, which is wrong where Conv1D and linear layers mix.
    """
    layout = merged.layer(layer).template.layout if layer in merged.layers else ""
    model_type = str(base.setting("model_type"))
    if layout not in ("linear", "fan_in_fan_out") or not has_conv1d(model_type):
        return False
    return (layout == "fan_in_fan_out") != is_conv1d(model_type, stem)


def _check(base: BaseModel, merged: Merged, place: Place, entry: Entry) -> str | None:
    """Refuse a tensor that two modules share; return why a delta cannot be added to this one."""
    whole = merged.whole_weights.get(place.layer)
    shape = merged.layer(place.layer).template.weight_shape if whole is None else tuple(whole.value.shape)
    expected = shape[::-1] if place.transposed else shape
    if entry.shape != expected:
        return explain_misfit(expected, entry.shape)
    if _is_tied(base) and entry.shape[0] == base.setting("vocab_size"):
        raise IncompatibleLoraError(
            f"{entry.name} is both embedding and output head of {base.path.name} (tie_word_embeddings), "
            f"so fusing {place.layer} would change both; leave it out of the LoRA, or apply the merge at "
            "run time"
        )
    return None


def _is_tied(base: BaseModel) -> bool:
    """Return True if the model is loaded with one weight for its embedding and its output head.

    Before version 5, transformers omitted the key from the configuration where it is true.
    """
    names = base.setting("architectures") or [""]
    tied = base.setting("tie_word_embeddings")
    return any(part in str(names[0]) for part in _WITH_HEAD) and (tied is None or bool(tied))
