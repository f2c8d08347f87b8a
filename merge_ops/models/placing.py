"""Which tensor of a base model each merged layer is added to: by names, shapes and the configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import IncompatibleLoraError
from ..formats.header import Entry
from ..merging.merged import Merged
from .folder import BaseModel

_SUFFIX = ".weight"
_DTYPES = ("F32", "F16", "BF16", "F64")
# transformers' Conv1D keeps its weight as (in, out); these model types have it, in modules of these names
_CONV1D_TYPES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")
_WITH_HEAD = ("LM", "ForConditionalGeneration", "ForPreTraining")


@dataclass(frozen=True, slots=True)
class Target:
    """The layer whose delta a tensor takes; ``turned`` if the delta is stored the other way round."""

    layer: str
    turned: bool


def find_targets(base: BaseModel, merged: Merged) -> dict[str, Target]:
    """Tensor name to layer.

    A layer's name may have one component in front that the tensor has not (``model.``, ``transformer.``),
    or the other way round.

    Raises:
        IncompatibleLoraError: naming the layer that has no tensor, several, one of another shape or dtype,
            or one that the model uses as embedding and as output head at once.
    """
    # a layer is called like its module, and the bias of a module like its tensor
    stems = [name.removesuffix(_SUFFIX) for name in base.tensors if name.endswith((_SUFFIX, ".bias"))]
    found: dict[str, Target] = {}
    layers = dict.fromkeys((*merged.whole_weights, *merged.layers))
    for layer, stem in _matched(base, layers, stems).items():
        name = stem if stem.endswith(".bias") else stem + _SUFFIX
        if name in found:
            raise IncompatibleLoraError(f"{found[name].layer} and {layer} are both for {name} of the base")
        found[name] = Target(layer, _is_turned(base, merged, layer, stem))
        _check(base, merged, found[name], base.tensors[name])
    return found


def _matched(base: BaseModel, layers: Iterable[str], stems: list[str]) -> dict[str, str]:
    known, by_tail = set(stems), defaultdict(list)
    for stem in stems:
        by_tail[_tail(stem)].append(stem)
    found = {}
    for layer in layers:
        fits = [layer] if layer in known else by_tail[layer] or [s for s in [_tail(layer)] if s in known]
        if not fits:
            raise IncompatibleLoraError(
                f"{base.path.name} has no weight for the layer {layer}{_why(base, layer)}"
            )
        if len(fits) > 1:
            raise IncompatibleLoraError(f"{layer} may be {' or '.join(fits[:3])} of {base.path.name}")
        found[layer] = fits[0]
    return found


def _tail(name: str) -> str:
    """A name without its first component."""
    return name.partition(".")[2]


def _why(base: BaseModel, layer: str) -> str:
    if layer.endswith("lm_head") and _is_tied(base):
        return " of its own: it is tied to the embedding; leave it out of the LoRA"
    return "; the LoRA is for another base model"


def _is_turned(base: BaseModel, merged: Merged, layer: str, stem: str) -> bool:
    """PEFT keeps one ``fan_in_fan_out`` for all layers, so it is wrong where Conv1D and linear layers mix."""
    layout = merged.layer(layer).template.layout if layer in merged.layers else ""
    if layout not in ("linear", "fan_in_fan_out") or base.said("model_type") not in _CONV1D_TYPES:
        return False
    return (layout == "fan_in_fan_out") != (stem.rpartition(".")[2] in _CONV1D_NAMES)


def _check(base: BaseModel, merged: Merged, target: Target, entry: Entry) -> None:
    replacement = merged.whole_weights.get(target.layer)
    shape = (
        merged.layer(target.layer).template.weight_shape
        if replacement is None
        else tuple(replacement.value.shape)
    )
    expected = shape[::-1] if target.turned else shape
    if entry.shape != expected:
        raise IncompatibleLoraError(
            f"{target.layer} has the shape {expected} in the LoRA and {entry.shape} in {base.path.name}; "
            "the LoRA is for another base model"
        )
    if entry.dtype not in _DTYPES:
        raise IncompatibleLoraError(
            f"{entry.name} of {base.path.name} is quantised ({entry.dtype}); fuse into the original weights"
        )
    if _is_tied(base) and entry.shape[0] == base.said("vocab_size"):
        raise IncompatibleLoraError(
            f"{entry.name} is embedding and output head of {base.path.name} at once (tie_word_embeddings), "
            f"and fusing {target.layer} would change both; leave it out of the LoRA, or apply the merge at "
            "run time"
        )


def _is_tied(base: BaseModel) -> bool:
    """True if the model is loaded with one weight for its embedding and its output head.

    Configurations of transformers before 5 leave the key out where it is true.
    """
    names = base.said("architectures") or [""]
    tied = base.said("tie_word_embeddings")
    return any(part in str(names[0]) for part in _WITH_HEAD) and (tied is None or bool(tied))
