"""The patches on a MODEL and CLIP, grouped into the LoRAs that loaders put there.

All adapters that ComfyUI loads in one go share the set of the file's keys, which tells one LoRA from another.
Differences of whole weights and biases have no such set; they belong to the LoRA whose keys name them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..core_patches import Patch, adapter_tensors, difference_of, loaded_keys_of, read_patches, replaced_by
from ..patches.patch import LowRankAdapter
from ..places.weight_names import Spellings
from ..target import Target

MODEL, CLIP = "model", "CLIP"
Parts = Mapping[str, Any]  # MODEL and CLIP, those that are connected
Row = tuple[str, str]  # the part, and the key of one of its weights
_OF_WEIGHT = (".diff", ".w_norm")
_OF_BIAS = (".diff_b", ".b_norm")
_SET = ".set_weight"


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """One patch of a LoRA: on which part, at which place among the patches of its weight, and its tensors."""

    part: str
    place: int
    patch: Patch
    tensors: dict[str, Tensor]  # by the end of the key in a file

    @property
    def row(self) -> Row:
        """The weight whose patches it is among."""
        return self.part, self.patch.target.key


@dataclass(slots=True, eq=False)
class LoadedLora:
    """What one loader put on MODEL and CLIP from one file. ``file_keys`` are those that it used."""

    file_keys: set[str]
    placed: list[Placed] = field(default_factory=list)

    def strength(self, part: str) -> float:
        """The strength in a part: the most frequent one, where a loader gives each block its own."""
        counts = Counter(one.patch.strength for one in self.placed if one.part == part)
        counts.pop(0, None)
        return counts.most_common(1)[0][0] if counts else 0.0

    def factors(self) -> dict[Target, float]:
        """What multiplies the strength of its part in each weight: 1 but where blocks have their own."""
        found = {}
        for one in self.placed:
            usual = self.strength(one.part)
            found[one.patch.target] = one.patch.strength / usual if usual else 1.0
        return found

    @property
    def parts(self) -> set[str]:
        """The parts that it changes."""
        return {one.part for one in self.placed}


def find_loaded(parts: Parts, spellings: Spellings) -> list[LoadedLora]:
    """Return the LoRAs on MODEL and CLIP in the order in which they were loaded.

    What is not in the result, stays: patches that are not of a LoRA, or of a weight that no file can name.
    """
    loads: dict[Any, LoadedLora] = {}
    whole: list[Placed] = []
    for part, host in parts.items():
        for patches in read_patches(host).values():
            seen: Counter[Any] = Counter()
            for place, patch in enumerate(patches):
                tensors = _tensors_of(patch, spellings)
                keys = loaded_keys_of(patch.value)
                if tensors is not None and keys is None:
                    whole.append(Placed(part, place, patch, tensors))
                elif tensors is not None:
                    mark = id(keys), patch.target
                    load = loads.setdefault((id(keys), seen[mark]), LoadedLora(keys or set()))
                    load.placed.append(Placed(part, place, patch, tensors))
                    seen[mark] += 1
    found = in_order(loads.values())
    apart = _give_to_owners(whole, found, spellings)
    return in_order([*found, *apart])


def in_order(loads: Iterable[LoadedLora]) -> list[LoadedLora]:
    """Sort by the order of loading, which the weights that LoRAs share tell; else as they were found."""
    rows: dict[Row, list[tuple[int, LoadedLora]]] = {}
    left = list(loads)
    for load in left:
        for one in load.placed:
            rows.setdefault(one.row, []).append((one.place, load))
    before: dict[int, set[int]] = {id(load): set() for load in left}
    for held in rows.values():
        sequence = [load for _, load in sorted(held, key=lambda entry: entry[0])]
        for earlier, later in pairwise(sequence):
            if earlier is not later:
                before[id(later)].add(id(earlier))
    found: list[LoadedLora] = []
    while left:
        waiting = {id(load) for load in left}
        first = next((load for load in left if not before[id(load)] & waiting), left[0])
        left.remove(first)
        found.append(first)
    return found


def _tensors_of(patch: Patch, spellings: Spellings) -> dict[str, Tensor] | None:
    """The tensors of a patch that can be one of a LoRA's, on a weight that has a name in files."""
    if patch.scale != 1 or patch.target.weight not in spellings:
        return None
    tensors = adapter_tensors(patch.value, (LowRankAdapter,))
    is_bias = patch.target.key.endswith(".bias")
    if (difference := difference_of(patch.value)) is not None:
        return {(_OF_BIAS if is_bias else _OF_WEIGHT)[0]: difference}
    if (value := replaced_by(patch.value)) is not None:
        return None if is_bias else {_SET: value}
    return tensors


def _give_to_owners(
    whole: Sequence[Placed], loads: Sequence[LoadedLora], spellings: Spellings
) -> list[LoadedLora]:
    """Add each whole difference to the LoRA whose keys name it; return those of no LoRA as ones of their own.

    A weight that is put in place of the model's, and that no LoRA names, may be anybody's and is none.
    """
    apart: dict[Any, LoadedLora] = {}
    counted: Counter[Any] = Counter()
    taken: set[tuple[int, Target]] = set()
    for one in whole:
        target, (end,) = one.patch.target, one.tensors
        ends = (end,) if end == _SET else _OF_BIAS if end in _OF_BIAS else _OF_WEIGHT
        names = {spelling + end for spelling in spellings[target.weight] for end in ends}
        owner = next(
            (
                load
                for load in loads
                if names & load.file_keys
                and (id(load), target) not in taken
                and one.patch.strength
                in (
                    {each.patch.strength for each in load.placed if each.part == one.part}
                    or {one.patch.strength}
                )
            ),
            None,
        )
        if owner is not None:
            taken.add((id(owner), target))
            owner.placed.append(one)
        elif end != _SET:
            mark = one.part, one.patch.strength, target
            number = counted[mark]
            counted[mark] += 1
            apart.setdefault((*mark[:2], number), LoadedLora(set())).placed.append(one)
    return list(apart.values())
