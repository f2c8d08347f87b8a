"""Pairing the weights of two models by name, or refusing models that are not of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import IncompatibleLoraError
from ..formats.whole_model import WholeModel
from ..names.checkpoint import DENOISER
from ..names.parts import DENOISERS
from ..names.recognise import Guess, guess_from
from ..names.whole_file import component_and_path

_PARTS = {"text_encoders": "text encoder", "text_encoder": "text encoder", "text_encoder_2": "text encoder 2"}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The names that both models have with one shape, why others are left out, and what a user may know.

    ``base`` has the names of the tuned model, whatever its own layout is.
    """

    base: WholeModel
    names: tuple[str, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Sides:
    """What names are told apart by; see ``Sized``."""

    key: str
    matrix_shape: tuple[int, int]


def pair_weights(tuned: WholeModel, base: WholeModel) -> Pairs:
    """Pair the weights of a tuned model with those of its base.

    Raises:
        IncompatibleLoraError: if the models are of two architectures, have no name in common, or if most of
            their weights have different shapes.
    """
    _refuse_other_architecture(tuned, base)
    base = _with_names_of(tuned, base)
    common = [name for name in tuned.weights if name in base.weights]
    if not common:
        raise IncompatibleLoraError(
            f"{tuned.name} and {base.name} have no weight of the same name ({_example(tuned)}, and "
            f"{_example(base)}); give a model and its own base"
        )
    misfits = {
        name: f"has the shape {tuned.weights[name].shape}, and in {base.name} {base.weights[name].shape}"
        for name in common
        if tuned.weights[name].shape != base.weights[name].shape
    }
    if 2 * len(misfits) > len(common):
        name = next(iter(misfits))
        raise IncompatibleLoraError(
            f"{len(misfits)} of {len(common)} weights have another shape in {tuned.name} than in "
            f"{base.name}, so one is not the base of the other; {name} {misfits[name]}"
        )
    extra, notes = _only_in(tuned, base, f"{base.name} has no such weight", "is left out")
    missing, more = _only_in(base, tuned, f"{tuned.name} has no such weight", "stays as it is")
    names = tuple(name for name in common if name not in misfits)
    return Pairs(base, names, {**misfits, **extra, **missing}, (*notes, *more, *_beside(tuned)))


def _refuse_other_architecture(tuned: WholeModel, base: WholeModel) -> None:
    own, other = _guess(tuned), _guess(base)
    if own is not None and other is not None and not _titles(own) & _titles(other):
        raise IncompatibleLoraError(
            f"{tuned.name} is {own.title} and {base.name} is {other.title}; give a model and its own base"
        )


def _with_names_of(tuned: WholeModel, base: WholeModel) -> WholeModel:
    """The base, with the names of the tuned model for what its file has in another layout."""
    lacking = {name: weight for name, weight in tuned.weights.items() if name not in base.weights}
    found = base.find(lacking) if base.find is not None and lacking else {}
    if not found:
        return base
    parts = {_layout_part(name) for name in found}
    kept = {
        name: weight
        for name, weight in base.weights.items()
        if name in tuned.weights or _layout_part(name) not in parts
    }
    return replace(base, weights={**kept, **found})


def _layout_part(name: str) -> str:
    """The part of a pipeline that a weight is in; layouts have names of their own for the denoiser."""
    part = name.partition(".")[0]
    return DENOISER if part in DENOISERS else part


def _guess(model: WholeModel) -> Guess | None:
    sides = {
        name: _Sides(weight.key, (weight.shape[0], weight.shape[1]))
        for name, weight in model.weights.items()
        if len(weight.shape) > 1 and weight.layout is not None
    }
    return guess_from(model.weights, sides)


def _titles(guess: Guess) -> set[str]:
    return {row.title for row in (guess.architecture, *guess.others)}


def _example(model: WholeModel) -> str:
    return next(iter(model.weights), "nothing")


def _only_in(
    model: WholeModel, other: WholeModel, reason: str, fate: str
) -> tuple[dict[str, str], list[str]]:
    """Why each weight that the other model lacks is left out; parts that it lacks as a whole are one note."""
    alone = [name for name in model.weights if name not in other.weights]
    present = {_part(name) for name in other.weights}
    whole = Counter(part for name in alone if (part := _part(name)) not in present)
    notes = [
        f"the {_title(part)} of {model.name} ({count} weights) {fate}: {other.name} has none"
        for part, count in whole.items()
    ]
    return {name: reason for name in alone if _part(name) in present}, notes


def _part(name: str) -> str:
    part, path = component_and_path(name)
    return f"{part}.{path.partition('.')[0]}" if part == "text_encoders" else part


def _title(part: str) -> str:
    return _PARTS.get(part, part.replace("_", " ") or "model")


def _beside(model: WholeModel) -> Iterable[str]:
    for what, count in model.beside.items():
        yield f"not compared: {what} ({count} tensor{'s' * (count != 1)})"
