"""Names that a file may be saved under: those that every system can hold."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ParameterError, shown

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
_MAX_BYTES = 255


def check_name(name: str) -> None:
    """Refuse one part of a path that some system cannot hold as it is.

    Raises:
        ParameterError: for control characters, names that Windows reserves, and names that are too long.
    """
    if not name.isprintable():
        raise ParameterError(f"the name {shown(name)} has a character in it that cannot be printed")
    if name.partition(".")[0].rstrip().upper() in _RESERVED:
        raise ParameterError(f"the name {shown(name)} is reserved by Windows; choose another one")
    if name != name.rstrip(" .") and name not in (".", ".."):
        raise ParameterError(f"the name {shown(name)} ends in a dot or a space, which Windows drops")
    size = len(os.fsencode(name))
    if size > _MAX_BYTES:
        raise ParameterError(f"the name {shown(name)} takes {size} bytes, and {_MAX_BYTES} fit")


def is_folder(path: Path) -> bool:
    """False too for a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
