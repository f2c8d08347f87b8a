"""Where a LoRA lies: the files of PEFT's folders, and whether there is anything at a path."""

from __future__ import annotations

from pathlib import Path

from ..errors import LoraFormatError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"


def is_folder(where: Path) -> bool:
    """Return True for a folder and False for a file.

    Raises:
        LoraFormatError: if there is neither.
    """
    try:
        found_folder, found_file = where.is_dir(), where.is_file()
    except OSError as error:  # a name that is longer than any file's may be
        raise LoraFormatError(f"{where.name[:80]!r} cannot be a file: {error.strerror}") from error
    if not found_folder and not found_file:
        raise LoraFormatError(f"there is no file {where.name!r}; check the path")
    return found_folder
