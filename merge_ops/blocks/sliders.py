"""The blocks of a LoRA as a tree of selectors, so that one number for each can be written as block strengths.

Every layer belongs to one place: a block (``in4``, ``double.3``, ``mid``), a text encoder (``te1``), or what
is left of a group (``unet``: layers outside all blocks). A place is narrower than the group that it is in, so
a term for it replaces one for the group. Besides, ``attn`` and ``ff`` multiply the layers of their sort, and
``audio`` and ``video`` those of their stream, in a LoRA that has both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .names import Facts, facts_of
from .selectors import Part
from .strengths import BlockStrengths

SORTS = ("attn", "ff", "audio", "video")
_PARENTS = {"te": "", "unet": ""} | dict.fromkeys(
    ("down", "mid", "up", "double", "single", "refiner", "blocks"), "unet"
)
_ORDER = ("te", "te1", "te2", "te3", "te4", "unet", *(word for word in _PARENTS if _PARENTS[word]))
_NUMBERED = ("double", "single", "refiner", "blocks")


@dataclass(frozen=True, slots=True)
class Place:
    """One number to set: the selector, the group that it is in, and the layers that it decides about.

    A group that has layers of its own, outside of what is narrower, is a place in itself.
    """

    selector: str
    group: str  # "" for a place that is a group itself
    number: int | None
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Values:
    """What a text of block strengths means for places and sorts; ``exact`` if these say all of it."""

    places: dict[str, float]
    sorts: dict[str, float]
    exact: bool


def places_of(layers: Iterable[str]) -> list[Place]:
    """Return the places of layers: text encoders, then what is outside of blocks, then blocks in order."""
    found: dict[tuple[str, str, int | None], list[str]] = {}
    for layer in layers:
        found.setdefault(_place(facts_of(layer)), []).append(layer)

    def order(key: tuple[str, str, int | None]) -> tuple[int, str, int]:
        selector, group, number = key
        return _ORDER.index(group or selector), "" if number is None else selector[:2], number or 0

    return [Place(*key, tuple(found[key])) for key in sorted(found, key=order)]


def parents_of(places: Iterable[Place]) -> dict[str, str]:
    """Return the groups of places, each with the group that it is in, or ``""``."""
    groups = dict.fromkeys(place.group or place.selector for place in places)
    return {
        group: _PARENTS.get(group, "") for group in (*dict.fromkeys(map(_parent, groups)), *groups) if group
    }


def sorts_of(layers: Iterable[str]) -> dict[str, list[str]]:
    """Return which layers are of each sort; those of text encoders are of none."""
    of = {sort: [la for la in layers if _is_of(facts_of(la), sort)] for sort in SORTS}
    if not of["audio"]:
        del of["video"]  # it would be the whole model
    return {sort: those for sort, those in of.items() if those}


def values_of(text: str, places: Iterable[Place]) -> Values:
    """Return what a text means; an empty one means 1 everywhere.

    Raises:
        ParameterError: if the text cannot be read.
    """
    strengths = BlockStrengths.parse(text) if text.strip() else BlockStrengths(())
    where = tuple(term for term in strengths.terms if term.aspects == {"where"})
    base = BlockStrengths(where, strengths.rest)
    sorts = {sort: term.strength for sort in SORTS for term in strengths.terms if term.parts == (Part(sort),)}
    values: dict[str, float] = {}
    exact = True
    for place in places:
        found = [base.factor(layer) for layer in place.layers]
        value = values[place.selector] = found[0] if len(set(found)) == 1 else sum(found) / len(found)
        exact = exact and all(
            math.isclose(strengths.factor(layer), value * _sorted(layer, sorts), abs_tol=1e-9)
            for layer in place.layers
        )
    return Values(values, {sort: sorts.get(sort, 1.0) for sort in SORTS}, exact)


def _sorted(layer: str, sorts: Mapping[str, float]) -> float:
    facts = facts_of(layer)
    return math.prod(strength for sort, strength in sorts.items() if _is_of(facts, sort))


def _is_of(facts: Facts, sort: str) -> bool:
    return Part(sort).holds(facts) and ("te" not in facts or "unet" in facts)


def _parent(group: str) -> str:
    return _PARENTS.get(group, "")


def _place(facts: Facts) -> tuple[str, str, int | None]:
    """Selector, group and number of the place that a layer belongs to."""
    if "unet" not in facts:
        own = next((word for word in ("te1", "te2", "te3", "te4") if word in facts), None)
        return (own, "te", None) if own else ("te", "", None)
    side = next((word for word in ("down", "up") if word in facts), None)
    for word, written in (("IN", "in"), ("OUT", "out")):
        number = facts.get(word)
        if number is not None:
            return f"{written}{number}", side or "unet", number
    if "mid" in facts:
        return "mid", "unet", None
    for word in _NUMBERED:
        number = facts.get(word)
        if number is not None and not (word == "blocks" and ("double" in facts or "single" in facts)):
            return f"{word}.{number}", word, number
    if side or "refiner" in facts:
        return side or "refiner", "", None
    return "unet", "", None
