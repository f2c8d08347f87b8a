"""Which model a LoRA was made for, from the names and widths of its layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..lora import Lora
from .architecture import Architecture, Evidence, Family, Sized, Structure
from .architectures import ARCHITECTURES, FAMILIES
from .parts import flat_path

_OWNERS: tuple[Architecture | Family, ...] = (*ARCHITECTURES, *FAMILIES.values())
# (pattern, whose it is, structure): the first that fits counts, so names of one model precede shared ones
_PATTERNS: tuple[tuple[re.Pattern[str], Architecture | Family, Structure], ...] = tuple(
    (re.compile(f"({pattern})"), owner, structure)
    for owner in _OWNERS
    for structure, pattern in owner.patterns.items()
)


@dataclass(frozen=True, slots=True)
class Guess:
    """The model that a LoRA seems to be made for, and whose names its layers have.

    ``others`` are models that it may be made for as well: neither names nor widths tell.
    """

    architecture: Architecture
    structure: Structure
    others: tuple[Architecture, ...] = ()

    @property
    def name(self) -> str:
        """The key of the architecture, as in ``load(path, architecture="flux")``."""
        return self.architecture.name

    @property
    def title(self) -> str:
        """What people call the model, or all that it may be."""
        return " or ".join(row.title for row in (self.architecture, *self.others))


def guess(lora: Lora) -> Guess | None:
    """Guess the architecture that most layers speak for; None if they are unknown, or only text encoders'."""
    return guess_from((*lora.layers, *lora.base_dependent, *lora.whole_weights), lora.layers)


def guess_from(names: Iterable[str], held: Mapping[str, Sized]) -> Guess | None:
    """Guess the architecture from the names of layers, and from the widths of those that are held."""
    names = tuple(names)
    layers = {flat_path(name): layer for name, layer in held.items()}
    votes = _count_votes(map(flat_path, names))
    if not votes:
        return None
    owner, structure = votes.most_common(1)[0][0]
    if isinstance(owner, Family):
        owner = _settle(owner, [voted for voted, _ in votes])
    if isinstance(owner, Family):
        chosen, *others = _narrow(owner, Evidence(layers, [*names, *(la.key for la in held.values())])) or (
            None,
        )
        return None if chosen is None else Guess(chosen, structure, tuple(filter(None, others)))
    return Guess(owner, structure)


def structure_of(names: Iterable[str]) -> Structure | None:
    """Return whose names most layers have, even if the model is unknown; None if they say nothing."""
    votes = _count_votes(map(flat_path, names))
    return votes.most_common(1)[0][0][1] if votes else None


def is_known(flat: str) -> bool:
    """Return True if a name without dots begins as one of a model that is known."""
    return _owner_of(flat) is not None


@lru_cache(maxsize=1 << 15)  # the files of one model have the same names
def _owner_of(flat: str) -> tuple[Architecture | Family, Structure] | None:
    return next(((owner, structure) for pattern, owner, structure in _PATTERNS if pattern.match(flat)), None)


def family_title(names: Iterable[str]) -> str | None:
    """Return what model, or which of a few, layers of these names belong to; None if they are unknown."""
    votes = _count_votes(map(flat_path, names))
    return votes.most_common(1)[0][0][0].title if votes else None


def _count_votes(names: Iterable[str]) -> Counter[tuple[Architecture | Family, Structure]]:
    """Count the names that speak for each model, or family of models, and structure."""
    return Counter(owner for name in names if (owner := _owner_of(name)) is not None)


def _settle(family: Family, voted: Collection[Architecture | Family]) -> Architecture | Family:
    """Prefer a model, or a smaller family, that some of the names belong to and the others may belong to."""
    for owner in _OWNERS:
        is_inside = (
            family in owner.families if isinstance(owner, Architecture) else family.name in owner.settles
        )
        if owner in voted and is_inside:
            return owner
    return family


def _narrow(family: Family, evidence: Evidence) -> list[Architecture]:
    """Choose the model of a family that fits the widths and numbers of blocks.

    Others follow the first where nothing tells; none if no model fits.
    """
    last_resort, others = list[Architecture](), list[Architecture]()
    for row in ARCHITECTURES:
        if family in row.families:
            fits = row.families[family]
            verdict = fits(evidence) if fits is not None else None
            if verdict:
                return [row]
            if verdict is None:
                (last_resort if fits is None else others).append(row)
    return last_resort + others
