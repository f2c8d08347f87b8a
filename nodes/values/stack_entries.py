"""LoRAs of a stack with their strengths. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ...merge_ops.errors import ParameterError, did_you_mean
from ...merge_ops.lora import Lora
from ...merge_ops.recipes.spelled import READINGS, use_forward_slashes, without_ending
from .lora_text import LoraRow, parse_rows
from .steps import Steps

if TYPE_CHECKING:
    from ...merge_ops.blocks import BlockStrengths


@dataclass(frozen=True, slots=True)
class StackEntry:
    """One LoRA of a stack. ``lora_name`` is its file's name in the loras folders, if it has one.

    ``prompts`` show what the LoRA does; those of its row, which may have none. ``steps`` is its strength over
    the sampling; None where that does not change. ``on`` names the model that its row puts it on, if two are
    patched; empty where the row does not say.
    """

    lora: Lora
    strength: float
    strength_clip: float
    lora_name: str | None = None
    blocks: BlockStrengths | None = None
    prompts: tuple[str, ...] = ()
    steps: Steps | None = None
    on: str = ""


def parse_rows_in_use(text: str) -> list[tuple[LoraRow, BlockStrengths | None, Steps | None]]:
    """Read the rows of a list that are on and have a strength, with their strengths by block and over time.

    Raises:
        ParameterError: if a line, its block strengths or its steps cannot be read.
    """
    from ...merge_ops.blocks import block_strengths

    rows = []
    for row in parse_rows(text):
        if row.enabled and (row.strength or row.clip):
            try:
                rows.append((row, block_strengths(row.blocks), Steps.parse(row.steps)))
            except ParameterError as error:
                raise ParameterError(f"{row.lora_name}: {error}") from error
    return rows


def change_entries(entries: list[StackEntry], settings: dict[tuple[str, str], Any]) -> list[StackEntry]:
    """Return the stack with other settings for single LoRAs, which are given by number (from 1) or name.

    ``strength`` holds for both the model and the text encoder, ``clip`` for the text encoder alone, whichever
    comes first; ``blocks`` is a text of block strengths. A LoRA at zero is left out, as a line of the list
    is.

    Raises:
        ParameterError: if no LoRA of the stack has the name, or several have it, or a text cannot be read.
    """
    from ...merge_ops.blocks import block_strengths

    changed = list(entries)
    for (setting, wanted), value in sorted(settings.items(), key=lambda item: item[0][0] != "strength"):
        index = _find_entry(entries, wanted)
        fields = {
            "strength": {"strength": value, "strength_clip": value},
            "clip": {"strength_clip": value},
            "blocks": {"blocks": block_strengths(value) if setting == "blocks" else None},
        }[setting]
        changed[index] = replace(changed[index], **fields)
    return [entry for entry in changed if entry.strength or entry.strength_clip]


def has_steps(entries: Iterable[StackEntry]) -> bool:
    """Return whether the strength of a LoRA changes over the sampling."""
    return any(entry.steps is not None for entry in entries)


def list_ignored_steps(entries: Iterable[StackEntry], remedy: str = "") -> list[str]:
    """Return a line for a node that takes no account of steps, if LoRAs have some; and what would help."""
    names = ", ".join(entry.lora.name for entry in entries if entry.steps is not None)
    return [f"steps= of {names} is not used: the full strength holds throughout{remedy}"] if names else []


def _find_entry(entries: list[StackEntry], wanted: str) -> int:
    if wanted.isdigit() and 1 <= int(wanted) <= len(entries):
        return int(wanted) - 1
    names = [_names(entry) for entry in entries]
    matches = next(
        filter(
            None,
            ([i for i, those in enumerate(names) if read(wanted) in map(read, those)] for read in READINGS),
        ),
        [],
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        numbers = " or ".join(str(i + 1) for i in matches)
        raise ParameterError(f"several LoRAs of the stack are called {wanted!r}; give the number: {numbers}")
    hint = did_you_mean(wanted, [min(those, key=len) for those in names])
    raise ParameterError(f"the stack of {len(entries)} has no LoRA {wanted!r}{hint}")


def _names(entry: StackEntry) -> set[str]:
    """What an entry may be called: as in the list, without its folder, without its suffix."""
    written = PurePosixPath(use_forward_slashes(entry.lora_name or entry.lora.name))
    bare = PurePosixPath(without_ending(str(written)))
    return {str(written), str(bare), written.name, bare.name, entry.lora.name}
