"""What the header of a LoRA file says: kinds, ranks, layers and the model. No tensor is read.

This is for lists of thousands of files, so it believes the header where ``container`` checks it: nothing that
is computed depends on it.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..adapters.named import unnamed
from ..adapters.reading import TABLES, place_of
from ..errors import LoraFormatError, reading
from ..names.architecture import Evidence
from ..names.parts import flat_path
from ..names.prefixes import strip_wrappers
from ..names.recognise import Guess, guess_from
from ..names.spelling import canonical_name
from ..names.whole_file import settle_names
from .lookalike import refuse_by_bytes

_MAX_HEADER = 8 << 20  # ComfyUI's own limit for what it shows of a file
_MAX_SIDES = 8
_MAX_SIDE = 1 << 40
_DORA = ("magnitude", "peft_magnitude")
# (role of the rows, role of the columns) of a factor pair, for each kind that has one
_PAIRS = (("up", "down"), ("embedding_down", "embedding_up"), ("hada_w1_a", "hada_w1_b"))
_KRONECKER = (("lokr_w1", "lokr_w1_a", "lokr_w1_b"), ("lokr_w2", "lokr_w2_a", "lokr_w2_b"))

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outline:
    """A LoRA file as its header shows it.

    ``kinds`` are names of kinds of adapters, the most frequent first; ``LoCon`` stands for LoRA with
    layers of convolutions. ``ranks`` are all that occur, ``width`` is that of attention (0
    without any).
    """

    kinds: tuple[str, ...]
    ranks: tuple[int, ...]
    layers: int
    guess: Guess | None
    width: int
    metadata: Mapping[str, str]


class _Sides(NamedTuple):
    key: str
    matrix_shape: tuple[int, int]


class _Module(NamedTuple):
    """A module of a file: the stem of its keys, its canonical name, its keys by role, and its kinds."""

    stem: str
    name: str
    keys: dict[str, str]
    kinds: tuple[str, ...]


Sides = tuple[int, int]


def read_outline(path: Path) -> Outline:
    """Read the header of a safetensors file.

    Raises:
        LoraFormatError: if it cannot be read, or is larger than a LoRA's.
    """
    with reading(path.name):
        entries, metadata = _read_header(path)
    keys = tuple(entries)
    kinds, ranks, sides = Counter[str](), set[int](), list[Sides | None]()
    modules = _modules(keys)
    for module in modules:
        shapes = {role: entries[key] for role, key in module.keys.items()}
        sides.append(_sides(shapes))
        ranks.update(shapes[role][0] for role in TABLES.rank_roles if shapes.get(role))
        is_conv = module.kinds == ("LoRA",) and math.prod(shapes.get("down", ())[2:]) > 1
        kinds.update(("LoCon",) if is_conv else module.kinds)
    found, width = _guess(keys, tuple(sides))
    names = tuple(kind for kind, _ in kinds.most_common())
    return Outline(names, tuple(sorted(ranks)), len(modules), found, width, metadata)


# the LoRAs of one trainer have the same keys, and those of one model the same sides, whatever their ranks are
@lru_cache(maxsize=48)
def _guess(keys: tuple[str, ...], sides: tuple[Sides | None, ...]) -> tuple[Guess | None, int]:
    """The model, and the width of its attention."""
    modules = _modules(keys)
    held = {m.name: _Sides(m.stem, side) for m, side in zip(modules, sides, strict=True) if side is not None}
    names = [module.name for module in modules]
    new = settle_names(names, held)
    held = {new.get(name, name): side for name, side in held.items()}
    flat = {flat_path(name): side for name, side in held.items()}
    return guess_from([new.get(name, name) for name in names], held), Evidence(flat, ()).attention_width


@lru_cache(maxsize=48)
def _modules(keys: tuple[str, ...]) -> tuple[_Module, ...]:
    """The modules that keys are of; a kind that is refused stands for a role."""
    found: dict[str, dict[str, str]] = {}
    kinds: dict[str, list[str]] = {}
    # as a model has them in memory
    plain = {unnamed(strip_wrappers(key))[0]: key for key in keys}
    for key, given in plain.items():
        stem, role, kind = place_of(key, plain)
        if role is None or role == "alpha":
            continue
        found.setdefault(stem, {})[role] = given
        shown = kind.name if kind is not None and kind.is_refused else TABLES.shown.get(role)
        named = "DoRA" if role in _DORA else shown
        if named is not None and named not in kinds.setdefault(stem, []):
            kinds[stem].append(named)
    return tuple(
        _Module(stem, canonical_name(stem), roles, tuple(kinds.get(stem, ())))
        for stem, roles in found.items()
    )


def _read_header(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(64)
            refuse_by_bytes(start, size)
            length = struct.unpack("<Q", start[:8])[0]
            if length + 8 > size:
                raise LoraFormatError("the file is cut off, or no safetensors file; download it again")
            if length > _MAX_HEADER:
                raise LoraFormatError(f"its header of {length} bytes is too large to show what it is")
            file.seek(8)
            header = json.loads(file.read(length))
    except OSError as error:
        raise LoraFormatError(f"the file cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, LoraFormatError):
            raise
        raise LoraFormatError("its header is not valid JSON; download it again") from error
    if not isinstance(header, dict):
        raise LoraFormatError("its header is not a JSON object; download it again")
    metadata = header.pop("__metadata__", None)
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    entries = {key: shape for key, entry in header.items() if (shape := _shape(entry)) is not None}
    return entries, {key: text for key, text in pairs if isinstance(text, str)}


def _shape(entry: Any) -> Shape | None:
    sides = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(sides, list) or len(sides) > _MAX_SIDES:
        return None
    return tuple(sides) if all(type(side) is int and 0 <= side < _MAX_SIDE for side in sides) else None


def _sides(roles: Mapping[str, Shape]) -> Sides | None:
    """``(out, in)`` of the weight that a module changes; None where its tensors do not show it."""
    for rows, columns in _PAIRS:
        if (up := roles.get(rows)) and (down := roles.get(columns)):
            return up[0], math.prod(down[1:])
    if full := roles.get("diff"):
        return full[0], math.prod(full[1:])
    parts = [
        (whole[0], math.prod(whole[1:]))
        if (whole := roles.get(one))
        else (a[0], math.prod(b[1:]))
        if (a := roles.get(first)) and (b := roles.get(second))
        else None
        for one, first, second in _KRONECKER
    ]
    left, right = parts
    return None if left is None or right is None else (left[0] * right[0], left[1] * right[1])
