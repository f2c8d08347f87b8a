"""Stacks of LoRAs with their strengths, from our own list text and from other packs' ``LORA_STACK``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from ...merge_ops.blocks import BlockStrengths, block_strengths
from ...merge_ops.errors import ParameterError, did_you_mean
from ...merge_ops.lora import Lora
from ..values.lora_text import LoraRow, parse_rows
from . import files


@dataclass(frozen=True, slots=True)
class StackEntry:
    """One LoRA of a stack. ``lora_name`` is its file's name in the loras folders, if it has one."""

    lora: Lora
    strength: float
    strength_clip: float
    lora_name: str | None = None
    blocks: BlockStrengths | None = None


def entries_of_text(text: str) -> list[StackEntry]:
    """Read the files of the lines that are on; a line with zero strength is skipped before its file is
    read.
    """
    return [
        StackEntry(files.read(row.lora_name), row.strength, row.clip, row.lora_name, blocks)
        for row, blocks in _rows_in_use(text)
    ]


def entries_of_stack(stack: Iterable[Any] | None) -> list[StackEntry]:
    """Entries of our own stack, or of the tuples ``(name, strength, clip strength)`` that other packs use."""
    entries = []
    for item in stack or ():
        if isinstance(item, StackEntry):
            entries.append(item)
            continue
        if not isinstance(item, tuple | list) or len(item) < 3:
            raise ParameterError(f"the stack holds {item!r}; (name, strength, clip strength) is expected")
        name, strength, strength_clip = item[0], float(item[1]), float(item[2])
        if name != "None" and (strength or strength_clip):
            entries.append(StackEntry(files.read(str(name)), strength, strength_clip, str(name)))
    return entries


def with_strengths(entries: list[StackEntry], strengths: dict[str, float]) -> list[StackEntry]:
    """The same stack with other strengths of single LoRAs, given by number (from 1) or name.

    They hold for the model and the text encoder; at zero a LoRA is left out, as a line of the list is.

    Raises:
        ParameterError: if no LoRA of the stack is called so, or several are.
    """
    changed = list(entries)
    for wanted, strength in strengths.items():
        place = _place(entries, wanted)
        changed[place] = replace(entries[place], strength=strength, strength_clip=strength)
    return [entry for entry in changed if entry.strength or entry.strength_clip]


def _place(entries: list[StackEntry], wanted: str) -> int:
    if wanted.isdigit() and 1 <= int(wanted) <= len(entries):
        return int(wanted) - 1
    names = [_names(entry) for entry in entries]
    found = [i for i, those in enumerate(names) if wanted.replace("\\", "/") in those]
    if len(found) == 1:
        return found[0]
    if found:
        numbers = " or ".join(str(i + 1) for i in found)
        raise ParameterError(f"several LoRAs of the stack are called {wanted!r}; give the number: {numbers}")
    hint = did_you_mean(wanted, [min(those, key=len) for those in names])
    raise ParameterError(f"the stack of {len(entries)} has no LoRA {wanted!r}{hint}")


def _names(entry: StackEntry) -> set[str]:
    """What an entry may be called: as in the list, without folder, without suffix."""
    written = PurePosixPath((entry.lora_name or entry.lora.name).replace("\\", "/"))
    bare = written.with_suffix("") if written.suffix == ".safetensors" else written
    return {str(written), str(bare), written.name, bare.name, entry.lora.name}


def file_states(text: str | None) -> list[tuple[str, int, int]]:
    """What the result of a list depends on besides its text."""
    return [files.state_of(row.lora_name) for row, _ in _rows_in_use(text or "")]


def _rows_in_use(text: str) -> list[tuple[LoraRow, BlockStrengths | None]]:
    """The rows that are on and have a strength, each with its block strengths."""
    rows = []
    for row in parse_rows(text):
        if row.enabled and (row.strength or row.clip):
            try:
                rows.append((row, block_strengths(row.blocks)))
            except ParameterError as error:
                raise ParameterError(f"{row.lora_name}: {error}") from error
    return rows
