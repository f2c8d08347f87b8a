"""From the patches of one LoRA on a model back to the LoRA: as its file has it, or else as the patches do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ....merge_ops.errors import MergeError, ParameterError
from ....merge_ops.formats import from_tensors
from ....merge_ops.lora import Lora
from ....merge_ops.names.spelling import canonical_name
from ...values.stack_entries import StackEntry
from ..places.key_maps import KeyMaps
from ..places.weight_names import Spellings, choose_stem, list_spellings
from ..target import Target
from .files import Named, find_file, held_by, place_files
from .patches import CLIP, MODEL, LoadedLora, Row


@dataclass(frozen=True, slots=True, eq=False)
class ReadLora:
    """A LoRA on the model. ``problem`` says why it cannot be merged; then ``entry`` is None."""

    load: LoadedLora
    name: str
    entry: StackEntry | None = None
    problem: str = ""
    on_base: frozenset[Row] = frozenset()  # where its change depends on the weight that it is added to

    def moved(self, factors: dict[str, float]) -> ReadLora:
        """Return it with its strength in each part multiplied: what later patches leave of it."""
        if self.entry is None:
            return self
        entry = replace(
            self.entry,
            strength=self.entry.strength * factors.get(MODEL, 1.0),
            strength_clip=self.entry.strength_clip * factors.get(CLIP, 1.0),
        )
        return replace(self, entry=entry)


def spellings_of(maps: KeyMaps) -> Spellings:
    """List the names of each weight that a file can name, also those that ComfyUI's own maps lack."""
    spellings = list_spellings(maps.both)
    for flat, target in maps.flat.items():
        if target not in spellings:
            spellings[target] = [f"lora_unet_{flat}"]
    return spellings


def read_loras(
    loads: Sequence[LoadedLora], named: Named, maps: KeyMaps, spellings: Spellings
) -> list[ReadLora]:
    """Read the LoRAs that loaders put on MODEL and CLIP; ``named`` are the files that they may come from."""
    found: list[ReadLora] = []
    files: list[str | None] = []
    placed = place_files(named, maps)
    for number, load in enumerate(loads, start=1):
        name = f"LoRA {number} on the model"
        try:
            made = from_tensors(name, _tensors_of(load, spellings))
            targets = maps.find_targets(held_by(made), name)
            if set(targets.values()) != load.factors().keys():
                raise ParameterError("some of its weights have no name that a LoRA file could use")
        except MergeError as error:
            rows = frozenset(one.row for one in load.placed)  # nothing is known of it
            problem = str(error).removeprefix(f"{name}: ")
            found.append(ReadLora(load, name, problem=problem, on_base=rows))
            files.append(None)
            continue
        file = find_file(made, targets, placed)
        fixed = {target for each, target in targets.items() if each not in made.layers}
        on_base = frozenset(one.row for one in load.placed if one.patch.target in fixed)
        half = _other_half(load, file, found, files)
        if half is not None:
            whole = LoadedLora(set(), [*found[half].load.placed, *load.placed])
            found[half] = _entry_of(whole, named[file or ""], file, maps, found[half].on_base | on_base)
            continue
        found.append(_entry_of(load, named[file] if file else made, file, maps, on_base))
        files.append(file)
    return found


def _other_half(
    load: LoadedLora, file: str | None, found: Sequence[ReadLora], files: Sequence[str | None]
) -> int | None:
    """Where the same file was loaded for the other part, by a loader that takes MODEL and CLIP one by one."""
    for index, (one, other) in enumerate(zip(found, files, strict=True)):
        if file is not None and other == file and not one.load.parts & load.parts:
            return index
    return None


def _entry_of(
    load: LoadedLora, lora: Lora, file: str | None, maps: KeyMaps, on_base: frozenset[Row]
) -> ReadLora:
    try:
        cut = _cut(lora, load.factors(), maps)
    except MergeError as error:
        return ReadLora(load, lora.name, problem=str(error), on_base=on_base)
    entry = StackEntry(cut, load.strength(MODEL), load.strength(CLIP), file)
    return ReadLora(load, lora.name, entry, on_base=on_base)


def _tensors_of(load: LoadedLora, spellings: Spellings) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA, under keys as in a file."""
    tensors = {}
    for one in load.placed:
        weight = one.patch.target.weight
        stem = choose_stem(canonical_name(spellings[weight][0]), weight, spellings)
        tensors |= {stem + end: tensor for end, tensor in one.tensors.items()}
    return tensors


def _cut(lora: Lora, factors: dict[Target, float], maps: KeyMaps) -> Lora:
    """The LoRA with what is on the model of it, each weight at the strength that it has there.

    Raises:
        ParameterError: for adapters whose strength cannot be changed for single weights.
    """
    places = maps.find_targets(held_by(lora), lora.name)
    kept = {name: factors[target] for name, target in places.items() if target in factors}
    fixed = [name for name in lora.base_dependent if kept.get(name, 1.0) not in (0.0, 1.0)]
    if fixed:
        kind = lora.base_dependent[fixed[0]].kind
        raise ParameterError(f"its strength differs between blocks, which cannot be kept for its {kind}")
    layers = {
        name: layer if kept[name] == 1 else layer.changed(scale=layer.scale * kept[name])
        for name, layer in lora.layers.items()
        if kept.get(name)
    }
    warnings = list(lora.warnings)
    absent = [name for name in places if name not in kept]
    if absent:
        warnings.append(
            f"{len(absent)} layers of its file, such as {absent[0]}, are not among its patches on the model, "
            "and so not in the merge"
        )
    if varied := sorted({factor for factor in kept.values() if factor != 1}):
        warnings.append(
            f"its loader gave blocks strengths of their own ({varied[0]:.4g} to {max(1, varied[-1]):.4g} "
            "times its strength), which the merge keeps; a recipe cannot, so it has no SHA-256 of it"
        )
    return replace(
        lora,
        layers=layers,
        base_dependent={name: one for name, one in lora.base_dependent.items() if kept.get(name)},
        whole_weights={name: one for name, one in lora.whole_weights.items() if name in kept},
        warnings=tuple(warnings),
        sha256=None if varied else lora.sha256,
        origin=lora.origin or lora,
    )
