"""What the metadata of several LoRAs says about how to use them, and where they contradict each other.

Programs look such facts up by the end of a key: ComfyUI's Get IC-LoRA Parameters takes the first key that
ends in ``reference_downscale_factor``, whatever stands before it. So keys that end alike are one fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import shown
from ..lora import Lora

# how trainers of LTX name what the conditioning of an IC-LoRA needs to know
_FACT = re.compile(r"(reference_\w+)$")


@dataclass(frozen=True, slots=True)
class Facts:
    """``values`` by key as a file states them; ``contradictions`` are sentences about what was left out."""

    values: dict[str, str]
    contradictions: tuple[str, ...]


def fact_of(key: str) -> str | None:
    """Return the fact about a LoRA's use that a key of the metadata states, such as its end; else None."""
    found = _FACT.search(key)
    return found[1] if found else None


def facts_of_use(loras: Sequence[Lora]) -> Facts:
    """Return the facts of use on which all LoRAs that state them agree, under the keys that state them.

    A LoRA that says nothing of a fact does not contradict it. Numbers agree by their value: ``2`` and
    ``2.0``.
    """
    facts = dict.fromkeys(fact for lora in loras for key in lora.metadata if (fact := fact_of(key)))
    values: dict[str, str] = {}
    contradictions = []
    for fact in facts:
        rows = [
            [(key, value) for key, value in lora.metadata.items() if fact_of(key) == fact] for lora in loras
        ]
        # of a file that states it twice, programs take the first key
        said = [(lora.name, own[0][1]) for lora, own in zip(loras, rows, strict=True) if own]
        agreed = _meaning(said[0][1])
        if any(_meaning(value) != agreed for _, value in said):
            listed = ", ".join(f"{shown(value)} in {name}" for name, value in said)
            contradictions.append(
                f"the metadata disagree on {fact} ({listed}), so the merge states none; "
                "set it where it is used"
            )
            continue
        for key, value in (row for own in rows for row in own if _meaning(row[1]) == agreed):
            values.setdefault(key, value)
    return Facts(values, tuple(contradictions))


def _meaning(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.strip()
