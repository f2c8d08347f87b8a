"""Models of two experts, as Wan 2.2: which of them a LoRA is for, as its names say.

One expert samples at high noise and the other at low noise. Trainers make a LoRA for each, and no tensor in
the files tells which is which. Only a file as diffusers writes it may hold both, under two names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from ..lora import BaseDependent, Layer, Lora, WholeWeight
from .parts import DENOISERS
from .recognise import guess

Expert = Literal["high", "low"]
# a word of its own: "highway" and "glow" are no experts
_EXPERT = re.compile(
    r"(?<![a-zA-Z])(?:(hi(?:gh)?|HI(?:GH)?|Hi(?:gh)?|low?|LOW?|Low?)[_\-. ]?(?:noise|Noise|NOISE)(?![a-z])"
    r"|(high|low|HIGH|LOW|High|Low)(?![a-zA-Z]))"
)
_NOISE = "noise"  # what is common to all names that say the whole word
PARTS: dict[Expert, str] = {"high": "transformer", "low": "transformer_2"}  # of diffusers' pipeline


def names_of(lora: Lora) -> tuple[str, ...]:
    """Return the names that may state the expert of a LoRA: its own, and those in its metadata."""
    return (lora.name, *(lora.metadata.get(key, "") for key in ("ss_output_name", "modelspec.title")))


def without_expert(name: str) -> str:
    """Return what the names of two LoRAs of a pair have in common: a name less the word for its expert.

    >>> without_expert("style_high_noise.safetensors") == without_expert("style_low_noise.safetensors")
    True
    """
    return " ".join(re.split(r"[\s_.-]+", _EXPERT.sub(" ", name).lower())).strip()


def stated_expert(names: Iterable[str]) -> Expert | None:
    """Return the expert that the names of one LoRA state, be it by a bare word; None for none or both."""
    return _expert_of(names)[0]


def experts_of(stated: Sequence[Iterable[str]]) -> list[Expert | None]:
    """Return the expert that the names of each LoRA of a list state; None where they state none, or both.

    ``high_noise`` and ``low_noise`` do so by themselves; the bare words only beside a LoRA of the other
    expert whose name is otherwise equal: ``high_heels`` and ``low_light`` are no pair.
    """
    found = [_expert_of(names) for names in stated]
    experts: list[Expert | None] = []
    for expert, rest in found:
        others = {word for other, words in found if other and other != expert for word in words}
        experts.append(expert if expert and (_NOISE in rest or rest & others) else None)
    return experts


def experts_in(lora: Lora) -> tuple[Expert, ...]:
    """Return the experts that the names of a LoRA's layers state, as diffusers calls them; none for others.

    A file for one model alone may have the name of the high-noise expert, so this by itself says nothing.
    """
    held = (*lora.layers, *lora.base_dependent, *lora.whole_weights)
    parts = {name.partition(".")[0] for name in held}
    if PARTS["low"] not in parts:
        return ()
    return ("high", "low") if parts & set(DENOISERS) else ("low",)


def of_expert(lora: Lora, expert: Expert) -> Lora:
    """Return what a file of both experts holds for one of them, as a LoRA of its own for a lone model.

    Layers of text encoders stay. LoRAs whose layers do not state an expert are returned as they are.
    """
    if not experts_in(lora):
        return lora
    high, low = PARTS["high"], PARTS["low"]

    def own(name: str) -> str:
        component, _, path = name.partition(".")
        if component == low:
            return f"{high}.{path}" if expert == "low" else ""
        return "" if expert == "low" and component in DENOISERS else name

    def key(one: Layer | BaseDependent | WholeWeight) -> str:
        return re.sub(rf"^{low}\b", high, one.key)

    return replace(
        lora,
        name=f"{lora.name} ({PARTS[expert]})",
        layers={own(n): one.changed(key=key(one)) for n, one in lora.layers.items() if own(n)},
        base_dependent={
            own(n): one.changed(key=key(one)) for n, one in lora.base_dependent.items() if own(n)
        },
        whole_weights={own(n): replace(one, key=key(one)) for n, one in lora.whole_weights.items() if own(n)},
        path=None,  # of no file: that one has more
        sha256=None,
    )


def across_experts(loras: Sequence[Lora]) -> list[str]:
    """Warn where LoRAs for both experts of one model are merged with each other."""
    # model -> expert -> LoRA -> the rest of its names
    sides: dict[str, dict[Expert, dict[str, set[str]]]] = {}
    for lora in loras:
        expert, rest = _expert_of(names_of(lora))
        guessed = guess(lora) if expert else None
        if expert and guessed is not None and guessed.architecture.experts:
            both = sides.setdefault(guessed.architecture.experts, {"high": {}, "low": {}})
            both[expert].setdefault(lora.name, set()).update(rest)
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


def _expert_of(names: Iterable[str]) -> tuple[Expert | None, set[str]]:
    """The expert that names state, and what two names of a pair have in common."""
    found: set[Expert] = set()
    rest: set[str] = set()
    for text in names:
        for match in _EXPERT.finditer(text):
            found.add("high" if (match[1] or match[2]).lower().startswith("h") else "low")
            rest.add(_NOISE if match[1] else f"{text[: match.start()]} {text[match.end() :]}".lower())
    return (found.pop(), rest) if len(found) == 1 else (None, set())
