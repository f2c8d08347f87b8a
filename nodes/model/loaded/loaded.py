"""Merging the LoRAs that are on a MODEL and CLIP already, whoever loaded them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....merge_ops.merging.merged import Merged
from ...values.keywords import Asked
from ...values.stack_entries import StackEntry, change_entries
from ..core_patches import list_entries, list_other_loras
from ..merges.merging import run_merge
from ..patches.clones import patch_clones
from ..places.fitting import FittedLoras, fit_to_model
from ..places.key_maps import read_key_maps
from .files import Named
from .loras import ReadLora, read_loras, spellings_of
from .patches import CLIP, MODEL, find_loaded
from .places import Places, put_in_place, settle_places, take_out

_SHOWN = 3
_NOTHING = "There is no LoRA on MODEL or CLIP that can be merged: both are unchanged."


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """The LoRAs on MODEL and CLIP, in the order of loading, and which of them are merged where."""

    model: Any
    clip: Any | None
    loras: list[ReadLora]
    places: Places

    @property
    def parts(self) -> dict[str, Any]:
        """The parts that are connected."""
        return {name: part for name, part in ((MODEL, self.model), (CLIP, self.clip)) if part is not None}

    @property
    def chosen(self) -> list[ReadLora]:
        """The LoRAs that can be merged, at the strength that they have where the merge goes."""
        return [one for number, one in enumerate(self.loras) if number not in self.places.stay]

    @property
    def entries(self) -> list[StackEntry]:
        """The same as a stack."""
        return [one.entry for one in self.chosen if one.entry is not None]


@dataclass(frozen=True, slots=True, eq=False)
class MergedLoaded:
    """Patched clones of MODEL and CLIP, the merge on them, and what to tell of it."""

    model: Any
    clip: Any | None
    merged: Merged | None = None  # None if nothing is merged
    fitted: FittedLoras | None = None
    note: str = ""


def read_loaded(model: Any, clip: Any | None, named: Named) -> Loaded:
    """Read which LoRAs are on MODEL and CLIP, from the files ``named`` where they are the same.

    Raises:
        IncompatibleLoraError: if a LoRA fits two text encoders equally well.
    """
    maps = read_key_maps(model, clip)
    spellings = spellings_of(maps)
    parts = {name: part for name, part in ((MODEL, model), (CLIP, clip)) if part is not None}
    loras = read_loras(find_loaded(parts, spellings), named, maps, spellings)
    places = settle_places(loras, parts)
    loras = [one.moved(places.factors.get(number, {})) for number, one in enumerate(loras)]
    return Loaded(model, clip, loras, places)


def merge_loaded(
    loaded: Loaded, asked: Asked, show_progress: Callable[[str], None] | None = None
) -> MergedLoaded:
    """Merge the LoRAs, and put the merge where they were.

    A plain ``linear`` merge is what the loaders made already, so MODEL and CLIP stay as they are.

    Raises:
        MergeError: if the LoRAs cannot be merged so.
    """
    entries = change_entries(loaded.entries, asked.settings)
    if not loaded.entries:
        return MergedLoaded(loaded.model, loaded.clip)
    bare, before = {}, {}
    for name, part in loaded.parts.items():
        bare[name] = part.clone()
        before[name] = take_out(bare[name], name, loaded.chosen, name in loaded.places.at_end)
    model, clip = bare.get(MODEL), bare.get(CLIP)
    if not entries or asked.strength == 0:  # where a sweep passes zero
        return MergedLoaded(model, clip)
    fitted = fit_to_model([entry.lora for entry in entries], model, clip)
    merged, note = run_merge(
        fitted.loras, entries, asked.keywords, asked.strength, show_progress=show_progress
    )
    if _is_as_loaded(asked, entries == change_entries(loaded.entries, {})):
        return MergedLoaded(loaded.model, loaded.clip, merged, fitted, note)
    stayed = {name: list_entries(part) for name, part in bare.items()}
    patched = patch_clones(merged, fitted, model, clip, chain=())
    for name, part in ((MODEL, patched.model), (CLIP, patched.clip)):
        if part is not None:
            put_in_place(part, stayed[name], before[name])
    note = "; ".join(filter(None, [note, *patched.how]))
    return MergedLoaded(patched.model, patched.clip, merged, fitted, note)


def describe_unmerged(loaded: Loaded, label: str = "") -> str:
    """Return what a node says that merged nothing, after the label of a sweep."""
    said = "the LoRAs are taken off: their strength is 0" if loaded.entries else _NOTHING
    return f"{label}: {said}" if label else said


def list_found(loaded: Loaded) -> list[str]:
    """Return a line for each LoRA that can be merged: its strength, its size, and where it came from."""
    lines = []
    for one, entry in zip(loaded.chosen, loaded.entries, strict=True):
        has_own = loaded.clip is not None and entry.strength != entry.strength_clip
        clip = f" (CLIP {entry.strength_clip:.6g})" if has_own else ""
        weights = len({placed.row for placed in one.load.placed})
        lines.append(f"{entry.lora_name or one.name}: {entry.strength:.6g}{clip}, {weights} weights")
    return lines


def list_stayed(loaded: Loaded) -> list[str]:
    """Return a line for everything on MODEL and CLIP that stays as it is, and for what was moved."""
    lines = [
        f"{loaded.loras[number].name} stays as it is: {reason}"
        for number, reason in sorted(loaded.places.stay.items())
    ]
    unknown = [one.name for one in loaded.chosen if one.entry is not None and one.entry.lora_name is None]
    if unknown:
        lines.append(
            f"the file of {' and of '.join(unknown)} is not known, so a recipe has no SHA-256 of it: no file "
            "that the nodes before this one name holds the same numbers"
        )
    for name, part in loaded.parts.items():
        lines += _others_on(name, part, loaded.loras)
        if name in loaded.places.at_end:
            lines.append(
                f"{name}: LoRAs lie before and after a model merge; all are merged after it, each at the "
                "strength that the model merge leaves of it"
            )
    return lines


def _others_on(name: str, part: Any, loras: Sequence[ReadLora]) -> list[str]:
    own = {(placed.row, placed.place) for one in loras for placed in one.load.placed if placed.part == name}
    others = [
        key
        for key, entries in list_entries(part).items()
        for place in range(len(entries))
        if ((name, key), place) not in own
    ]
    keys = list(dict.fromkeys(others))
    lines = []
    if others:
        shown = ", ".join(keys[:_SHOWN]) + (", ..." if len(keys) > _SHOWN else "")
        lines.append(
            f"{name}: {len(others)} patches that are not LoRAs, such as those of a model merge, stay where "
            f"they are ({shown})"
        )
    return lines + [
        f"{name}: LoRAs that came by {way} are no patches of weights, and stay as they are"
        for way in list_other_loras(part)
    ]


def _is_as_loaded(asked: Asked, is_unchanged: bool) -> bool:
    how = asked.keywords
    is_plain = how.get("method") == "linear" and how.get("space") == "delta" and how.get("rank") is None
    return is_plain and asked.strength == 1 and is_unchanged
