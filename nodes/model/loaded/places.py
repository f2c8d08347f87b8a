"""Where a merge of loaded LoRAs goes among the patches that stay, so that it means the same there.

Each weight has its own sequence of patches. Where only LoRAs lie between the first and the last LoRA of a
weight, the merge takes their place. What lies between them and only adds, commutes with them. A model merge
multiplies the weight first, and all LoRAs before it with it: then the merge goes to the end, and counts each
LoRA at the strength that the model merges after it leave. What can be moved neither way stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..core_patches import Patch, is_addition, list_entries, put_patches, read_patches
from ..patches.patch import MergedAdapter
from .loras import ReadLora
from .patches import Parts, Row

_UNEVEN = "a later model merge leaves different shares of it in different weights"
_AROUND = "a patch that depends on the weight lies between it and a later LoRA"
_ON_BASE = "its change depends on the weight, and another patch lies between it and a later LoRA"


class _Step(NamedTuple):
    """A patch of one weight: the number of its LoRA, if it is of one, and what it does to what was before."""

    lora: int | None
    scale: float
    adds: bool  # False if what it adds depends on the weight


@dataclass(slots=True)
class Places:
    """``stay`` says why each LoRA is not merged that is not; ``factors`` are those of the others, by part."""

    stay: dict[int, str]
    factors: dict[int, dict[str, float]] = field(default_factory=dict)
    at_end: set[str] = field(default_factory=set)  # the parts in which the merge comes last


def settle_places(loras: Sequence[ReadLora], parts: Parts) -> Places:
    """Decide which LoRAs are merged, and where: numbers are places in ``loras``."""
    rows = _rows_of(loras, parts)
    stay = {number: one.problem for number, one in enumerate(loras) if one.entry is None}
    while True:
        places = Places(dict(stay))
        for part in parts:
            held = {row: steps for row, steps in rows.items() if row[0] == part}
            stuck, straddled = _between(held, stay)
            if straddled and not stuck:
                factors, stuck = _shares(held, stay)
                places.at_end.add(part)
                for number, factor in factors.items():
                    places.factors.setdefault(number, {})[part] = factor
            if stuck:
                stay |= stuck
                break
        else:
            return places


def take_out(part: Any, name: str, loras: Sequence[ReadLora], at_end: bool) -> dict[str, int]:
    """Remove the patches of LoRAs from a (cloned) MODEL or CLIP.

    Returns, by the key of each weight, how many of the patches that stay come before the merge.
    """
    gone: dict[str, set[int]] = {}
    for one in (placed for lora in loras for placed in lora.load.placed if placed.part == name):
        gone.setdefault(one.patch.target.key, set()).add(one.place)
    kept, before = {}, {}
    for key, entries in list_entries(part).items():
        places = gone.get(key, set())
        kept[key] = [entry for place, entry in enumerate(entries) if place not in places]
        last = max(places, default=len(entries))
        before[key] = len(kept[key]) if at_end else last + 1 - len(places) if places else last
    put_patches(part, kept)
    return before


def put_in_place(part: Any, stayed: Mapping[str, Sequence[Any]], before: Mapping[str, int]) -> None:
    """Move the patches that were added after those that stayed to where the LoRAs were."""
    entries = list_entries(part)
    for key, held in entries.items():
        count = len(stayed.get(key, ()))
        place = min(before.get(key, count), count)
        entries[key] = [*held[:place], *held[count:], *held[place:count]]
    put_patches(part, entries)


def _rows_of(loras: Sequence[ReadLora], parts: Parts) -> dict[Row, list[_Step]]:
    owners = {
        (one.row, one.place): (number, one.row not in lora.on_base)
        for number, lora in enumerate(loras)
        for one in lora.load.placed
    }
    rows = {}
    for part, host in parts.items():
        for key, patches in read_patches(host).items():
            steps = []
            for place, patch in enumerate(patches):
                number, adds = owners.get(((part, key), place), (None, _only_adds(patch)))
                steps.append(_Step(number, patch.scale, adds))
            rows[part, key] = steps
    return rows


def _only_adds(patch: Patch) -> bool:
    if isinstance(patch.value, MergedAdapter):
        return patch.scale == 1 and not patch.value.depends_on_weight
    return is_addition(patch.value) and (patch.scale == 1 or patch.target.is_whole)


def _between(rows: Mapping[Row, Sequence[_Step]], stay: Mapping[int, str]) -> tuple[dict[int, str], bool]:
    """Which LoRAs cannot pass what lies between them and later ones; and whether a model merge does."""
    stuck: dict[int, str] = {}
    straddled = False
    for steps in rows.values():
        ours = [place for place, step in enumerate(steps) if _is_merged(step, stay)]
        for place in range(ours[0], ours[-1]) if ours else ():
            step = steps[place]
            if _is_merged(step, stay):
                continue
            straddled = straddled or step.scale != 1
            for number, adds in _merged_before(steps, place, stay):
                if not step.adds:
                    stuck[number] = _AROUND
                elif not adds:
                    stuck[number] = _ON_BASE
    return stuck, straddled


def _shares(
    rows: Mapping[Row, Sequence[_Step]], stay: Mapping[int, str]
) -> tuple[dict[int, float], dict[int, str]]:
    """What the patches after each LoRA leave of it, if it is the same in all weights; else why it stays."""
    factors: dict[int, float] = {}
    stuck: dict[int, str] = {}
    for steps in rows.values():
        for place, step in enumerate(steps):
            if step.lora is None or not _is_merged(step, stay):
                continue
            factor = 1.0
            for later in steps[place + 1 :]:
                if _is_merged(later, stay):
                    continue
                factor *= later.scale
                if not later.adds:
                    stuck[step.lora] = _AROUND
                elif not step.adds:
                    stuck[step.lora] = _ON_BASE
            if factors.setdefault(step.lora, factor) != factor:
                stuck[step.lora] = _UNEVEN
    return factors, stuck


def _is_merged(step: _Step, stay: Mapping[int, str]) -> bool:
    return step.lora is not None and step.lora not in stay


def _merged_before(steps: Sequence[_Step], place: int, stay: Mapping[int, str]) -> Iterator[tuple[int, bool]]:
    for step in steps[:place]:
        if step.lora is not None and step.lora not in stay:
            yield step.lora, step.adds
