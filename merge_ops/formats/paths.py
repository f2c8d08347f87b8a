"""Where LoRAs and models lie: the files of PEFT's folders, and whether there is anything at a path.

Nothing here needs torch, so that a wrong path is named at once.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import LoraFormatError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLED_NAME = "adapter_model.bin"
KINDS_OF_BASE = "give a .safetensors file, a diffusers folder or a transformers folder"


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


def check_model(where: Path, way_out: str = "check the path") -> None:
    """Refuse the path of a model at which there is nothing.

    Raises:
        LoraFormatError: ending in the way out.
    """
    if not where.is_file() and not where.is_dir():
        raise LoraFormatError(f"there is no file or folder {where.name!r}; {way_out}")
