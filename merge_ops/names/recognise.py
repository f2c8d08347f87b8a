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
# a word of its own: "highway" and "glow" are no experts
_EXPERT = re.compile(
    r"(?<![a-zA-Z])(high|low|HIGH|LOW|High|Low)([_\-. ]?(?:noise|Noise|NOISE)(?![a-z])|(?![a-zA-Z]))"
)


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
    """Warn where LoRAs for both experts of one model are merged with each other.

    They are known by ``high_noise`` and ``low_noise`` in their names, or by the bare words if the names are
    otherwise equal: ``high_heels`` and ``low_light`` are no pair.
    """
    sides: dict[str, dict[str, dict[str, set[str]]]] = {}  # model -> side -> LoRA -> the rest of its names
    for lora in loras:
        side, rest = _expert_of(lora)
        guessed = guess(lora) if side else None
        if guessed is not None and guessed.architecture.experts:
            both = sides.setdefault(guessed.architecture.experts, {"high": {}, "low": {}})
            both[side].setdefault(lora.name, set()).update(rest)
    warnings = []
    for model, both in sides.items():
        pairs = [(a, b) for a, x in both["high"].items() for b, y in both["low"].items() if x & y]
        if pairs:
            high, low = (", ".join(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
            warnings.append(
                f"{high} is for the high-noise expert of {model} and {low} for the low-noise one; these are "
                "two models, so merge the LoRAs of each on their own"
            )
    return warnings


def _expert_of(lora: Lora) -> tuple[str, set[str]]:
    """The expert that a LoRA's names state, or nothing, and what two names of a pair have in common."""
    stated = (lora.metadata.get(key, "") for key in ("ss_output_name", "modelspec.title"))
    found: set[str] = set()
    rest: set[str] = set()
    for text in (lora.name, *stated):
        for match in _EXPERT.finditer(text):
            found.add(match[1].lower())
            rest.add("noise" if match[2] else f"{text[: match.start()]} {text[match.end() :]}".lower())
    return (found.pop(), rest) if len(found) == 1 else ("", set())


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
