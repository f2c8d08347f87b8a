"""Regular expressions from a file: those of a PEFT configuration, which nobody has checked."""

from __future__ import annotations

import re

from ..errors import LoraFormatError, shown

_MAX_REPEATS = 3  # each may multiply the time for matching by the length of the name


def check_pattern(pattern: str) -> None:
    """Refuse a text that is not a regular expression, or one that may take forever to match.

    Raises:
        LoraFormatError: the message shows the pattern.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise LoraFormatError(f"{shown(pattern)} is not a pattern: {error}") from error
    if _may_take_forever(pattern):
        raise LoraFormatError(
            f"{shown(pattern)} has too many repeats to match in reasonable time; write the names out"
        )


def _may_take_forever(pattern: str) -> bool:
    """True for a pattern that takes hours on some names: a repeated group, or many repeats in a row."""
    plain = re.sub(r"\\.|\[[^\]]*\]", "_", pattern)  # escaped characters and classes repeat nothing
    return bool(re.search(r"\)[*+{]", plain)) or len(re.findall(r"[*+{]", plain)) > _MAX_REPEATS
