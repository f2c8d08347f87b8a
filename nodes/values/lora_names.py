"""Which files a name in the list may mean. Needs neither ComfyUI nor torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from ...merge_ops.errors import ParameterError, shown
from ...merge_ops.formats.epochs import in_epoch_order, is_pattern, matcher
from ...merge_ops.recipes.spelled import ENDINGS, READINGS, composed, use_forward_slashes, without_ending

__all__ = ["find_files", "match_files", "use_forward_slashes"]

Reading = Callable[[str], str]
_FOLDER = "/adapter_model.safetensors"  # of PEFT


def find_files(name: str, files: Sequence[str]) -> list[str]:
    """Find the files that ``name`` may mean, with or without folder, ``.safetensors`` and ``.sft``.

    A file whose name is exactly the one that is wanted counts before names with the other slash, then in the
    other Unicode form, then with other spaces around them. Several results are for the error to list.

    A name with a folder means one place below the loras folders, or nothing. If no file is in that place and
    several elsewhere are called so, these are returned.
    """
    has_folder = "/" in use_forward_slashes(name)
    # spaces at the ends may belong to the name, or to the list
    tries = [(typed, reading) for typed in (name, name.strip()) for reading in READINGS[:-1]]
    tries.append((name, READINGS[-1]))
    for typed, reading in tries:
        found = _in_place(typed, files, reading)
        if not found and not has_folder and reading is not READINGS[0]:  # which has folders of one slash only
            found = _anywhere(typed, files, reading)
        if found:
            return found
    elsewhere = next(filter(None, (_anywhere(typed, files, read) for typed, read in tries)), [])
    return elsewhere if has_folder and len(elsewhere) > 1 else []


def match_files(name: str, files: Sequence[str]) -> list[str]:
    """Find the files that a pattern such as ``epochs/run-*`` matches, the oldest epoch first.

    A name that ends in a slash stands for all files of that folder. Without a folder, files in any one folder
    count if there are none outside of folders. Empty for a name that is no pattern.

    Raises:
        ParameterError: if a pattern without a folder matches files in several folders.
    """
    wanted = composed(name).strip()
    wanted += "*" if wanted.endswith("/") else ""
    if not is_pattern(wanted):
        return []
    pattern = matcher(wanted)
    spelled = {file: _without_folder_of_peft(composed(file)) for file in files if file.endswith(ENDINGS)}
    found = _fitting(pattern, spelled)
    if not found and "/" not in wanted:
        found = _fitting(pattern, {file: text.rpartition("/")[2] for file, text in spelled.items()})
        folders = sorted({spelled[file].rpartition("/")[0] for file in found})
        if len(folders) > 1:
            raise ParameterError(
                f"{shown(name)} matches files in several folders: {', '.join(folders)}; write the folder too"
            )
    ordered = in_epoch_order([PurePosixPath(without_ending(spelled[file])) for file in found])
    places = {str(path): place for place, path in enumerate(ordered)}
    return sorted(found, key=lambda file: places[str(PurePosixPath(without_ending(spelled[file])))])


def _fitting(pattern: re.Pattern[str], spelled: dict[str, str]) -> list[str]:
    return [
        file
        for file, text in spelled.items()
        if pattern.fullmatch(text) or pattern.fullmatch(without_ending(text))
    ]


def _without_folder_of_peft(name: str) -> str:
    """What is seen of a file: a PEFT folder is known by its own name."""
    return name.removesuffix(_FOLDER)


def _in_place(name: str, files: Sequence[str], reading: Reading) -> list[str]:
    """The files in the place that the name states: that name, or else with an ending, or a PEFT folder."""
    wanted = reading(name)
    for full in ({wanted}, {wanted + ending for ending in ENDINGS}, {wanted + _FOLDER}):
        if found := [file for file in files if reading(file) in full]:
            return found
    return []


def _anywhere(name: str, files: Sequence[str], reading: Reading) -> list[str]:
    """The files of that name in any folder."""
    base = reading(name).rpartition("/")[2]
    wanted = {base, *(base + ending for ending in ENDINGS)}
    return [file for file in files if reading(file).rpartition("/")[2] in wanted]
