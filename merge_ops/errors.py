"""Errors that a user can act on: each message says what is wrong, where, and the way out."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

PUBLIC = "merge_ops"  # where the errors are imported from; ComfyUI shows it, for a pack with its folder
_LISTED = 30  # names that a message lists at most


class MergeError(ValueError):
    """Base of every error that merge_ops raises on purpose; its message is ``escaped``."""

    __module__ = PUBLIC

    def __init__(self, message: str) -> None:
        super().__init__(escaped(message))


class UnknownMethodError(MergeError):
    """No merge method or combination type has the given name."""

    __module__ = PUBLIC


class ParameterError(MergeError):
    """A parameter is unknown, missing or out of range."""

    __module__ = PUBLIC


class IncompatibleLoraError(MergeError):
    """LoRAs cannot be merged with each other, or do not fit the model."""

    __module__ = PUBLIC


class LoraFormatError(MergeError):
    """A file is not a LoRA that can be read."""

    __module__ = PUBLIC
    file: str = ""  # the name of the file, once the message begins with it


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Put the name of the file in front of a message raised inside, in this one place."""
    try:
        yield
    except LoraFormatError as error:
        if error.file:
            raise
        named = LoraFormatError(f"{file}: {error}")
        named.file = file
        raise named from error.__cause__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, or the list of names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(names)})" if len(names) <= _LISTED else f" ({len(names)} are known)"


def escaped(text: str) -> str:
    """Return text with what cannot be seen written out by its number; line breaks stay.

    Names in files may hold controls of a terminal, marks that turn the direction of reading, and letters of
    no width, with which one name passes for another.
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shown(value: Any) -> str:
    """Return a value from a file as it may be shown: escaped, on one line, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
