"""One safetensors file whose tensors are read one at a time, or only some of their rows."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraFormatError, reading
from .container import changed
from .header import Entry, parse_header, torch_dtype
from .lookalike import refuse_by_bytes

_MAX_HEADER = 100 << 20  # the limit of the safetensors format itself


def read_entries(path: Path) -> tuple[bytes, tuple[Entry, ...], dict[str, str]]:
    """Return the header with its length before it, its entries in the order of their data, and the metadata.

    Raises:
        LoraFormatError: if the file cannot be read, or is damaged, truncated or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(64)
            refuse_by_bytes(start, size)
            length = struct.unpack("<Q", start[:8])[0]
            if length > _MAX_HEADER or length + 8 > size:
                raise LoraFormatError("this is cut off or not a safetensors file; download it again")
            file.seek(0)
            header = file.read(8 + length)
    except OSError as error:
        raise LoraFormatError(f"the file cannot be read: {error.strerror or error}") from error
    entries, metadata = parse_header(header[8:])
    needed = len(header) + (entries[-1].end if entries else 0)
    if needed != size:
        raise LoraFormatError(f"the file needs {needed} bytes and has {size}; download it again")
    return header, tuple(entries), metadata


class TensorFile:
    """The tensors of a file by name, which are read when they are asked for and never mapped.

    A mapped file would count as memory of the process, and one that is cut off would end it.

    Raises:
        LoraFormatError: as ``read_entries`` does, with the name of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path.name):
            header, entries, self.metadata = read_entries(path)
        self.entries = {entry.name: entry for entry in entries}
        self._data = len(header)
        self._state = _state(path)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return a tensor in its own dtype, or its rows from ``start`` to ``stop``.

        Raises:
            LoraFormatError: if the file has changed, or this torch does not know the dtype.
        """
        entry = self.entries[name]
        with reading(self.path.name):
            dtype = torch_dtype(entry)
            rows = entry.shape[0] if entry.shape else 1
            stop = rows if stop is None else min(stop, rows)
            shape = (max(stop - start, 0), *entry.shape[1:]) if entry.shape else ()
            tensor = torch.empty(shape, dtype=dtype)
            row = math.prod(entry.shape[1:]) * dtype.itemsize
            self._fill(tensor, self._data + entry.begin + start * row)
            return tensor

    def _fill(self, tensor: Tensor, place: int) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(place)
                raw = tensor.view(-1).view(torch.uint8).numpy().data
                complete = file.readinto(raw) == len(raw)
        except OSError as error:
            raise LoraFormatError(f"the file cannot be read: {error.strerror or error}") from error
        if not complete or _state(self.path) != self._state:
            raise changed()


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
