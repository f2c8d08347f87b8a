"""Which model a LoRA was made for, from the names and widths of its layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ..lora import Lora
from .architecture import Architecture, Evidence, Family, Structure
from .architectures import ARCHITECTURES, FAMILIES
from .parts import flat_name

_OWNERS: tuple[Architecture | Family, ...] = (*ARCHITECTURES, *FAMILIES.values())
# (pattern, whose it is, structure): the first that fits counts, so names of one model precede shared ones
_PATTERNS: tuple[tuple[re.Pattern[str], Architecture | Family, Structure], ...] = tuple(
    (re.compile(f"({pattern})"), owner, structure)
    for owner in _OWNERS
    for structure, pattern in owner.patterns.items()
)
# not in the middle of a word: "highway" and "glow" are no experts
_EXPERT = re.compile(r"(?<![a-zA-Z])(high|low|HIGH|LOW|High|Low)(?=[_\-. ]?[nN]oise|[^a-z]|$)")


@dataclass(frozen=True, slots=True)
class Guess:
    """The model that a LoRA seems to be made for, and whose names its layers have."""

    architecture: Architecture
    structure: Structure

    @property
    def name(self) -> str:
        """The key of the architecture, as in ``load(path, architecture="flux")``."""
        return self.architecture.name

    @property
    def title(self) -> str:
        """What people call the model."""
        return self.architecture.title


def guess(lora: Lora) -> Guess | None:
    """Guess the architecture that most layers speak for; None if they are unknown, or only text encoders'."""
    layers = {flat_name(name): layer for name, layer in lora.layers.items()}
    votes = _count_votes(layers)
    if not votes:
        return None
    owner, structure = votes.most_common(1)[0][0]
    if isinstance(owner, Family):
        owner = _settle(owner, [voted for voted, _ in votes])
    if isinstance(owner, Family):
        architecture = _narrow(owner, Evidence(layers, lora.layers.keys()))
        return None if architecture is None else Guess(architecture, structure)
    return Guess(owner, structure)


def family_title(names: Iterable[str]) -> str | None:
    """Return what model, or which of a few, layers of these names belong to; None if they are unknown."""
    votes = _count_votes(map(flat_name, names))
    return votes.most_common(1)[0][0][0].title if votes else None


def across_experts(loras: Sequence[Lora]) -> list[str]:
    """Warn where LoRAs for both experts of one model are merged with each other."""
    sides: dict[str, dict[str, list[str]]] = {}
    for lora in loras:
        stated = (lora.metadata.get(key, "") for key in ("ss_output_name", "modelspec.title"))
        experts = {side.lower() for side in _EXPERT.findall(" ".join((lora.name, *stated)))}
        guessed = guess(lora) if len(experts) == 1 else None
        if guessed is not None and guessed.architecture.experts:
            both = sides.setdefault(guessed.architecture.experts, {"high": [], "low": []})
            both[experts.pop()].append(lora.name)
    return [
        f"{', '.join(both['high'])} is for the high-noise expert of {model} and {', '.join(both['low'])} "
        "for the low-noise one; these are two models, so merge the LoRAs of each on their own"
        for model, both in sides.items()
        if both["high"] and both["low"]
    ]


def _count_votes(names: Iterable[str]) -> Counter[tuple[Architecture | Family, Structure]]:
    """Count the names that speak for each model, or family of models, and structure."""
    votes: Counter[tuple[Architecture | Family, Structure]] = Counter()
    for name in names:
        for pattern, owner, structure in _PATTERNS:
            if pattern.match(name):
                votes[owner, structure] += 1
                break
    return votes


def _settle(family: Family, voted: Collection[Architecture | Family]) -> Architecture | Family:
    """Prefer a model, or a smaller family, that some of the names belong to and the others may belong to."""
    for owner in _OWNERS:
        is_inside = (
            family in owner.families if isinstance(owner, Architecture) else family.name in owner.settles
        )
        if owner in voted and is_inside:
            return owner
    return family


def _narrow(family: Family, evidence: Evidence) -> Architecture | None:
    """Choose the model of a family that fits the widths and numbers of blocks."""
    last_resort = None
    for row in ARCHITECTURES:
        if family in row.families:
            fits = row.families[family]
            if fits is None:
                last_resort = row
            elif fits(evidence):
                return row
    return last_resort
