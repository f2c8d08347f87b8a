"""Where a file may be saved: under a name that every system can hold, in a folder that exists."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import ParameterError, shown

FORMATS = ("kohya", "diffusers", "peft")  # that a merge is saved in
EXISTS = "{} already exists; choose another name, or ask to overwrite it"
_WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
_MAX_BYTES = 255


def check_destination(target: Path, form: str, overwrite: bool) -> None:
    """Refuse a path that a file or folder of this format cannot be written to.

    Raises:
        ParameterError: for a wrong suffix, a name that some system cannot hold, a missing folder, or a file
            that exists and must not be replaced.
    """
    if form != "peft" and target.suffix != ".safetensors":
        raise ParameterError(
            f"{target.name!r} must end in .safetensors (or save a folder with format='peft')"
        )
    if form == "peft" and target.suffix == ".safetensors":
        raise ParameterError(
            f"format 'peft' writes a folder, so {target.name!r} must not end in .safetensors"
        )
    check_place(target, overwrite)
    if target.exists() and target.is_dir() != (form == "peft"):
        kind = "folder" if target.is_dir() else "file"
        raise ParameterError(f"{target.name} is a {kind}, which format {form!r} cannot replace")


def check_file(target: Path, suffix: str, overwrite: bool) -> None:
    """Refuse a path that a single file of another kind, such as a picture, cannot be written to.

    Raises:
        ParameterError: as ``check_destination`` does.
    """
    if target.suffix.lower() != suffix:
        raise ParameterError(f"{target.name!r} must end in {suffix}")
    check_place(target, overwrite)
    if target.is_dir():
        raise ParameterError(f"{target.name} is a folder, and a {suffix} file cannot replace it")


def check_place(target: Path, overwrite: bool) -> None:
    """Refuse a name that some system cannot hold, and a place that cannot be written to.

    A link is followed: what it leads to is replaced, and the link stays.

    Raises:
        ParameterError: for such a name, a missing folder, a file that exists and must not be replaced, and
            for what is no file or folder of ours to replace: devices, pipes, read-only files, broken links.
    """
    check_name(target.name)
    if not is_folder(target.parent):
        raise ParameterError(f"the folder {target.parent.name[:80]!r} does not exist; create it first")
    if target.is_symlink() and not target.exists():
        raise ParameterError(f"{target.name} is a link that leads nowhere; remove it, or choose another name")
    if target.exists():
        if not overwrite:
            raise ParameterError(EXISTS.format(target.name))
        _check_replaceable(target)
    folder = target.resolve().parent
    if not os.access(folder, os.W_OK):
        raise ParameterError(f"nothing can be written to the folder {folder.name[:80]!r}; choose another one")


def check_new(target: Path) -> None:
    """Refuse a path at which there is something, for what replaces nothing.

    Raises:
        ParameterError: also for a link that leads nowhere.
    """
    if target.exists() or target.is_symlink():
        raise ParameterError(f"{target.name} already exists; choose another name")


def _check_replaceable(target: Path) -> None:
    mode = target.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ParameterError(f"{target.name} is a device or a pipe, not a file; choose another name")
    if not mode & _WRITABLE:
        raise ParameterError(f"{target.name} is read-only; allow writing to it, or choose another name")


def check_name(name: str) -> None:
    """Refuse one part of a path that some system cannot hold.

    Raises:
        ParameterError: for control characters, names that Windows reserves, and names that are too long.
    """
    if not name.isprintable():
        raise ParameterError(f"the name {shown(name)} contains a character that cannot be printed")
    if name.partition(".")[0].rstrip().upper() in _RESERVED:
        raise ParameterError(f"the name {shown(name)} is reserved by Windows; choose another one")
    if name != name.rstrip(" .") and name not in (".", ".."):
        raise ParameterError(f"the name {shown(name)} ends in a dot or a space, which Windows drops")
    size = len(os.fsencode(name))
    if size > _MAX_BYTES:
        raise ParameterError(f"the name {shown(name)} is {size} bytes long, but at most {_MAX_BYTES} fit")


def is_folder(path: Path) -> bool:
    """Return True for an existing folder, and False also for a name that no folder can have."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
