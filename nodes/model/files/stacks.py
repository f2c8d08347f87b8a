"""Reading the LoRAs of a stack: from our own list text, and from other packs' ``LORA_STACK``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ....merge_ops.errors import MergeError, ParameterError
from ....merge_ops.recipes.spelled import without_ending
from ...values.lora_text import LoraRow
from ...values.prompts import split_prompts
from ...values.stack_entries import StackEntry, parse_rows_in_use
from ...values.steps import Steps
from .lora_files import FileState, expand_name, read_file_state, read_lora

if TYPE_CHECKING:
    from ....merge_ops.blocks import BlockStrengths


def read_list(text: str) -> list[StackEntry]:
    """Read the files of the lines that are on and have a strength; the other files are not opened.

    Raises:
        MergeError: if a line cannot be read, or the file of one.
    """
    return [
        StackEntry(
            read_lora(row.wanted),
            row.strength,
            row.clip,
            row.lora_name,
            blocks,
            split_prompts(row.prompt),
            steps,
            row.on,
        )
        for row, blocks, steps in _rows_in_use(text)
    ]


def list_patterns(text: str | None) -> list[str]:
    """Return a sentence for each row of a list that stands for several files, with their names.

    Raises:
        MergeError: as ``read_list`` does.
    """
    named = {row.wanted: expand_name(row.wanted) for row, *_ in parse_rows_in_use(text or "")}
    return [
        f"{name} is {len(files)} LoRA{'s' * (len(files) != 1)}: {', '.join(map(without_ending, files))}"
        for name, files in named.items()
        if files != [name]
    ]


def _rows_in_use(text: str) -> list[tuple[LoraRow, BlockStrengths | None, Steps | None]]:
    """The rows that are on, one for each file: a pattern is many rows at one strength."""
    return [
        (row if files == [row.wanted] else replace(row, lora_name=file, typed=""), blocks, steps)
        for row, blocks, steps in parse_rows_in_use(text)
        for files in (expand_name(row.wanted),)
        for file in files
    ]


def read_stack(stack: Iterable[Any] | None) -> list[StackEntry]:
    """Read our own stack, or the tuples ``(name, strength, clip strength)`` that other packs use.

    Raises:
        MergeError: if the stack holds something else, or a file cannot be read.
    """
    entries = []
    for item in stack or ():
        if isinstance(item, StackEntry):
            entries.append(item)
            continue
        if not isinstance(item, tuple | list) or len(item) < 3:
            raise ParameterError(f"the stack holds {item!r}; (name, strength, clip strength) is expected")
        name, strength, strength_clip = item[0], float(item[1]), float(item[2])
        if name != "None" and (strength or strength_clip):
            entries.append(StackEntry(read_lora(str(name)), strength, strength_clip, str(name)))
    return entries


def check_list(text: str | None) -> bool | str:
    """Return True for a list whose lines can be read and whose files exist, else what is wrong.

    This is what ComfyUI expects of a validation.
    """
    try:
        read_file_states(text)
    except MergeError as error:
        return str(error)
    return True


def read_file_states(text: str | None) -> list[FileState]:
    """Read what the result of a list depends on besides its text: the state of each file in use.

    Raises:
        ParameterError: if a line cannot be read, or its file does not exist.
    """
    return [read_file_state(row.wanted) for row, *_ in _rows_in_use(text or "")]
