"""The file that holds a recipe: a saved LoRA, or a text."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoraFormatError
from ..formats.paths import WEIGHTS_NAME


def recipe_file(where: Path) -> Path:
    """Return the file at a path, or that of a PEFT folder.

    Raises:
        LoraFormatError: if there is none.
    """
    file = where / WEIGHTS_NAME if where.is_dir() else where
    if not file.is_file():
        kind = (
            f"{where.name} is a folder without {WEIGHTS_NAME}"
            if where.is_dir()
            else f"there is no file {where.name!r}"
        )
        raise LoraFormatError(f"{kind}; give a saved LoRA or a recipe")
    return file
