"""How a file's name may be typed: with the other slash, in the other Unicode form, with spaces around it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

ENDINGS = (".safetensors", ".sft")
_SPACES = " \t\u00a0\u3000"  # web/js/files/names.js has the same


def as_typed(name: str) -> str:
    """Return the name as it is."""
    return name


def use_forward_slashes(name: str) -> str:
    """Return a file name with the slashes that lists use on every system."""
    return name.replace("\\", "/")


def composed(name: str) -> str:
    """Return the name with forward slashes and composed letters; macOS stores accents apart."""
    return unicodedata.normalize("NFC", use_forward_slashes(name))


def trimmed(name: str) -> str:
    """Return the composed name without spaces around folders and file; a list loses those at the end."""
    ending = next((ending for ending in ENDINGS if name.strip(_SPACES).endswith(ending)), "")
    stem = composed(name).strip(_SPACES).removesuffix(ending)
    return "/".join(part.strip(_SPACES) for part in stem.split("/")) + ending


# the closest first: a name that is exactly a file's is never taken for another file's
READINGS: tuple[Callable[[str], str], ...] = (as_typed, use_forward_slashes, composed, trimmed)


def without_ending(name: str) -> str:
    """Return a file's name without ``.safetensors`` or ``.sft``."""
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
