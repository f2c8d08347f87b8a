"""Stacks of LoRAs with their strengths, from our own list text and from other packs' ``LORA_STACK``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..merge_ops.blocks import BlockStrengths, block_strengths
from ..merge_ops.errors import ParameterError
from ..merge_ops.types import Lora
from . import files
from .lora_text import LoraRow, parse_rows


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
