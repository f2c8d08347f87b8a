"""How large a matrix may become: small factors in a file can stand for more than any machine holds."""

from __future__ import annotations

import math
import os
from functools import cache
from pathlib import Path

from .errors import MergeError

LARGEST = 1 << 32  # entries; the largest weights of published models have half as many
_BYTES = 4  # of a float32 number
# what a container may use, by version 2 and version 1 of Linux' control groups
_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_room(what: str, *sides: int, error: type[MergeError] = MergeError) -> None:
    """Refuse a float32 matrix of these sides before it is made, if memory cannot hold it.

    Raises:
        MergeError: or ``error``; with the size and the number of bytes.
    """
    entries = math.prod(sides)
    if entries > LARGEST or entries * _BYTES > memory_of_machine():
        size, there, usual = map(_gigabytes, (entries * _BYTES, memory_of_machine(), LARGEST * _BYTES))
        raise error(
            f"{what} would be {' x '.join(map(str, sides))}, which takes {size}, where this machine has {there} "
            f"and no weight of a known model takes more than {usual}; the file is damaged, or made to fill "
            "memory, so leave it out"
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


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.1f} GB"
