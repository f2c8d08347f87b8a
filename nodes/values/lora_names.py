"""Which files a name in the list may mean. Needs neither ComfyUI nor torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...merge_ops.recipes.spelled import ENDINGS, READINGS, use_forward_slashes

__all__ = ["find_files", "use_forward_slashes"]

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
