"""Pairing the weights of two models by name, or refusing models that are not of one kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import IncompatibleLoraError
from ..formats.whole_model import WholeModel
from ..names.recognise import Guess, guess_from
from ..names.whole_file import component_and_path

_PARTS = {"text_encoders": "text encoder", "text_encoder": "text encoder", "text_encoder_2": "text encoder 2"}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The names that both models have with one shape, why others are left out, and what a user may know."""

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
        IncompatibleLoraError: if the models are of two architectures, have names of two programs, or if most
            of their weights have different shapes.
    """
    common = [name for name in tuned.weights if name in base.weights]
    _refuse_other_model(tuned, base, common)
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
    return Pairs(names, {**misfits, **extra, **missing}, (*notes, *more, *_beside(tuned)))


def _refuse_other_model(tuned: WholeModel, base: WholeModel, common: list[str]) -> None:
    own, other = _guess(tuned), _guess(base)
    if own is not None and other is not None and not _titles(own) & _titles(other):
        raise IncompatibleLoraError(
            f"{tuned.name} is {own.title} and {base.name} is {other.title}; give a model and its own base"
        )
    if own is not None and other is not None and own.structure != other.structure and not common:
        names = {"original": "the model's authors", "diffusers": "diffusers"}
        raise IncompatibleLoraError(
            f"{tuned.name} has the layer names of {names[own.structure]} and {base.name} those of "
            f"{names[other.structure]}; give both in one layout"
        )
    if not common:
        raise IncompatibleLoraError(
            f"{tuned.name} and {base.name} have no weight of the same name ({_example(tuned)}, and "
            f"{_example(base)}); give a model and its own base"
        )


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
