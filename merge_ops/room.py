"""How large a matrix may become: small factors in a file can stand for more than any machine holds."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

from .errors import LoraFormatError, MergeError

LARGEST = 1 << 32  # entries; the largest weights of published models have half as many
_BYTES = 4  # of a float32 number
# what a container may use, by version 2 and version 1 of Linux' control groups
_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_room(what: str, *sides: int) -> None:
    """Refuse a float32 matrix of these sides before it is made, if memory cannot hold it.

    Raises:
        MergeError: with the sides and the number of bytes.
    """
    if math.prod(sides) * _BYTES > min(LARGEST * _BYTES, memory_of_machine()):
        raise MergeError(_too_large(what, sides))


def check_weight(what: str, *sides: int) -> None:
    """Refuse a file that describes a weight larger than any model has; it is not made when it is read.

    Raises:
        LoraFormatError: with the sides and the number of bytes.
    """
    if math.prod(sides) > LARGEST:
        raise LoraFormatError(_too_large(what, sides))


def _too_large(what: str, sides: tuple[int, ...]) -> str:
    size, there, usual = (
        f"{each / (1 << 30):.1f} GB"
        for each in (math.prod(sides) * _BYTES, memory_of_machine(), LARGEST * _BYTES)
    )
    return (
        f"{what} would be {' x '.join(map(str, sides))}, which takes {size}; this machine has {there} and no "
        f"weight of a known model takes more than {usual}; the file is damaged, or made to fill memory, so "
        "leave it out"
    )


@cache
def memory_of_machine() -> int:
    """The bytes of memory of this machine or container; what cannot be asked counts as endless."""
    found = [1 << 62]
    try:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        pass  # Windows has no such call; there the largest weight of a model is the limit
    for group in _GROUPS:
        try:
            text = Path(group).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(each for each in found if each > 0)
