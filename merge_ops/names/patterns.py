"""Regular expressions that come from a file: those of a PEFT configuration, which nobody has checked."""

from __future__ import annotations

import re

from ..errors import LoraFormatError, shown

_MAX_REPEATS = 3  # each adds a power of the name's length to the time that matching may take


def check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression, or one that may be matched for ever."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise LoraFormatError(f"{shown(pattern)} is not a pattern: {error}") from error
    if _may_take_forever(pattern):
        raise LoraFormatError(f"{shown(pattern)} repeats too much to be matched; write the names out")


def _may_take_forever(pattern: str) -> bool:
    """True for a pattern that some name keeps busy for hours: a repeated group, or many repeats in a row."""
    plain = re.sub(r"\\.|\[[^\]]*\]", "_", pattern)  # what is escaped or in a class repeats nothing
    return bool(re.search(r"\)[*+{]", plain)) or len(re.findall(r"[*+{]", plain)) > _MAX_REPEATS
