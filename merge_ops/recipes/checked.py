"""Checking the types of values from outside (recipes, requests, YAML) before they are used.

``what`` names the value in messages, which never show more than a line of it. Every check raises
``ParameterError``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from ..errors import ParameterError, did_you_mean

_SHOWN = 60  # characters of a value in a message
_MAX_NAME = 500
_KINDS = {dict: "an object", list: "a list", type(None): "nothing", bytes: "bytes"}


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, on one line, without the content of lists or objects."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number out of range"
    return repr(value) if isinstance(value, bool | int | float) else _KINDS.get(type(value), "something else")


def text(value: Any, what: str) -> str:
    """Return the value if it is text."""
    if not isinstance(value, str):
        raise ParameterError(f"{what} must be text, not {shown(value)}")
    return value


def number(value: Any, what: str) -> float:
    """Return the value as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(f"{what} must be a number, not {shown(value)}")
    try:
        finite = float(value)
    except OverflowError:
        finite = math.inf
    if not math.isfinite(finite):
        raise ParameterError(f"{what} must be a finite number, not {shown(value)}")
    return finite


def whole(value: Any, what: str, least: int, most: int) -> int:
    """Return the value if it is a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(f"{what} must be a whole number, not {shown(value)}")
    if value < least:
        raise ParameterError(f"{what} must be {shown(least)} or more, not {shown(value)}")
    if value > most:
        raise ParameterError(f"{what} is too large; give {shown(most)} or less")
    return value


def items(value: Any, what: str) -> list[Any]:
    """Return the value as a list if it is one."""
    if not isinstance(value, list | tuple):
        raise ParameterError(f"{what} must be a list, not {shown(value)}")
    return list(value)


def mapping(value: Any, what: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the value as a dictionary if its keys are text, and among ``known`` if that is given."""
    if not isinstance(value, dict):
        raise ParameterError(f"{what} must be an object, not {shown(value)}")
    names = None if known is None else list(known)
    for key in value:
        if not isinstance(key, str) or (names is not None and key not in names):
            hint = did_you_mean(str(key)[:_SHOWN], names or []) if isinstance(key, str) else ""
            raise ParameterError(f"{what} has no key {shown(key)}{hint}")
    return dict(value)


def is_plain_name(name: str) -> bool:
    """Return True for a relative name: no drive, no ``..``, no control characters."""
    path = name.replace("\\", "/")
    return (
        0 < len(name) <= _MAX_NAME
        and name.isprintable()
        and not path.startswith(("/", "~"))
        and not re.match(r"[A-Za-z]:", path)
        and ".." not in path.split("/")
        and bool(path.replace("/", "").replace(".", ""))
    )


def plain_name(value: Any, what: str) -> str:
    """Return the value if ``is_plain_name`` accepts it."""
    if not is_plain_name(text(value, what)):
        raise ParameterError(
            f"{what} is {shown(value)}; give a plain name or a path below a folder, without '..'"
        )
    return str(value)


def made_plain(name: str) -> str:
    """Return the part of a name that a recipe may hold: all of it, or only what follows the last folder."""
    if is_plain_name(name):
        return name
    last = re.split(r"[\\/]", name)[-1].rpartition(":")[2].lstrip("~")[:_MAX_NAME]
    last = "".join(c if c.isprintable() else "_" for c in last)
    return last if is_plain_name(last) else "lora"
