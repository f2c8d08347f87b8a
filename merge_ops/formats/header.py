"""The header of a safetensors file, read piece by piece, so that no file can exhaust memory."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LoraFormatError, shown

# bits of one number, by the name that the format gives its type
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
_MAX_ENTRIES = 100_000  # the largest LoRAs have ten thousand tensors; each costs a thousand bytes of memory
_MAX_ENTRY = 2048  # characters of one tensor's entry: a type, a shape and two offsets
_SPACE = re.compile(rb"[ \t\r\n]*")
_UNSEEN = re.compile(rb"[\x00-\x1f]")
_BACKSLASH = ord("\\")
_HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair
_MAX_OFFSET = 1 << 63
_MAX_NAME = 1024
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
)  # would end or hide a line of a message


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies behind the header, and what it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def parse_header(raw: bytes) -> tuple[list[Entry], dict[str, str]]:
    """Return the entries in the order of their data, which they must fill without gaps, and the metadata.

    Raises:
        LoraFormatError: if this is not a header, or an entry contradicts itself.
    """
    try:
        entries, metadata = _parse(raw)
        _check_order(entries)
    except LoraFormatError as error:
        raise LoraFormatError(f"this is not a valid safetensors file: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise LoraFormatError("this is not a safetensors file: its header cannot be read") from error
    return entries, metadata


def _check_order(entries: list[Entry]) -> None:
    """Sort the entries by their data, and refuse gaps and overlaps."""
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    place = 0
    for entry in entries:
        if entry.begin != place:
            raise LoraFormatError(
                f"{shown(entry.name)} begins at byte {entry.begin} of the data instead of {place}; "
                "download it again"
            )
        place = entry.end


def torch_dtype(entry: Entry) -> torch.dtype:
    """Return the type of a tensor, if this torch has it."""
    dtype = getattr(torch, _TORCH.get(entry.dtype, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise LoraFormatError(
            f"{entry.name} is stored as {entry.dtype}, which this torch does not know; "
            "quantised adapters are not supported"
        )
    return dtype


def _parse(text: bytes) -> tuple[list[Entry], dict[str, str]]:
    entries: list[Entry] = []
    metadata: dict[str, str] = {}
    seen: set[str] = set()
    place = _open(text, 0)
    while place >= 0:
        name, place = _key(text, place)
        if name in seen or len(seen) > _MAX_ENTRIES:
            what = f"{shown(name)} twice" if name in seen else f"more than {_MAX_ENTRIES} tensors"
            raise LoraFormatError(f"its header lists {what}")
        seen.add(name)
        if len(name) > _MAX_NAME or _CONTROL.search(name):
            raise LoraFormatError(f"{shown(name)} is not a valid tensor name")
        if name == "__metadata__":
            metadata, place = _metadata(text, place)
        else:
            end = text.index(b"}", place, place + _MAX_ENTRY) + 1
            entries.append(_entry(name, json.loads(text[place:end])))
            place = end
        place = _next(text, place)
    return entries, metadata


def _metadata(text: bytes, place: int) -> tuple[dict[str, str], int]:
    if text.startswith(b"null", place):
        return {}, place + 4
    metadata: dict[str, str] = {}
    inner = _open(text, place, last=False)
    while inner >= 0:
        name, place = _key(text, inner)
        metadata[name], place = _string(text, place)
        if len(metadata) > _MAX_ENTRIES:
            raise LoraFormatError(f"its header lists more than {_MAX_ENTRIES} entries of metadata")
        inner = _next(text, place, last=False)
    return metadata, text.index(b"}", place) + 1


def _open(text: bytes, place: int, last: bool = True) -> int:
    """The place of the first key of the object that begins here, or -1 if it is empty."""
    place = _skip(text, place)
    if text[place : place + 1] != b"{":
        raise ValueError("not an object")
    place = _skip(text, place + 1)
    return _closed(text, place, last) if text[place : place + 1] == b"}" else place


def _next(text: bytes, place: int, last: bool = True) -> int:
    """The place of the next key of an object, or -1 at its end."""
    place = _skip(text, place)
    if text[place : place + 1] == b"}":
        return _closed(text, place, last)
    if text[place : place + 1] != b",":
        raise ValueError("no comma")
    return _skip(text, place + 1)


def _closed(text: bytes, place: int, last: bool) -> int:
    if last and _skip(text, place + 1) != len(text):
        raise ValueError("text behind the header")
    return -1


def _key(text: bytes, place: int) -> tuple[str, int]:
    """The key that begins here, and the place of its value."""
    name, place = _string(text, place)
    place = _skip(text, place)
    if text[place : place + 1] != b":":
        raise ValueError("no colon")
    return name, _skip(text, place + 1)


def _string(text: bytes, place: int) -> tuple[str, int]:
    """The text between the quotes that begin here, and the place behind them."""
    if text[place : place + 1] != b'"':
        raise ValueError("no text")
    end = start = place + 1
    while True:
        end = text.index(b'"', end)
        before = end
        while before > start and text[before - 1] == _BACKSLASH:
            before -= 1
        if (end - before) % 2 == 0:  # no quote is escaped by a backslash that is escaped itself
            break
        end += 1
    if _UNSEEN.search(text, start, end):
        raise ValueError("a control character in a text")
    seen = memoryview(text)  # whose parts are no copies: one text may be most of the file
    if text.find(b"\\", start, end) < 0:
        return str(seen[start:end], "utf-8"), end + 1
    string: str = json.loads(str(seen[start - 1 : end + 1], "utf-8"))
    if _HALF.search(string):  # an error here, not later where the name is shown or written
        raise ValueError("half of a surrogate pair")
    return string, end + 1


def _skip(text: bytes, place: int) -> int:
    space = _SPACE.match(text, place)
    return place if space is None else space.end()


def _entry(name: str, value: dict[str, Any]) -> Entry:
    """A tensor's entry, checked: its type, its shape and the bytes it takes must agree."""
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError("not a list")
    wrong = None
    if not isinstance(dtype, str) or dtype not in BITS:
        wrong = f"the unknown type {shown(dtype)}"
    elif not _is_shape(shape):
        wrong = f"the shape {shown(shape)}"
    elif len(offsets) != 2 or not all(type(end) is int and 0 <= end < _MAX_OFFSET for end in offsets):
        wrong = f"the offsets {shown(offsets)}"
    elif math.prod(shape) * BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        wrong = f"the shape {shown(shape)} of {dtype} in {offsets[1] - offsets[0]} bytes"
    if wrong is not None:
        raise LoraFormatError(f"{shown(name)} has {wrong}; download it again")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _is_shape(sides: list[Any]) -> bool:
    """False for what torch cannot count either: it multiplies the sides though one of them is zero."""
    if len(sides) > 64 or not all(type(side) is int and side >= 0 for side in sides):
        return False
    return bool(math.prod(side or 1 for side in sides) < _MAX_OFFSET)
