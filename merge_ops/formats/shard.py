"""One safetensors file of a model: what its header says, and its tensors, each read when it is asked for."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraFormatError, reading
from .container import changed
from .header import Entry, parse_header, torch_dtype
from .lookalike import refuse_by_bytes

_MAX_HEADER = 100 << 20  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file. ``header`` is everything before the data, including the length.

    ``component`` is the part of a pipeline whose folder it is in; nothing for any other file. ``modified`` is
    when the file was written, in nanoseconds.
    """

    path: Path
    header: bytes
    entries: tuple[Entry, ...]  # in the order of their data
    metadata: Mapping[str, str] = field(default_factory=dict)
    component: str = ""
    modified: int = 0

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return len(self.header) + (self.entries[-1].end if self.entries else 0)

    def read_into(self, entry: Entry, memory: memoryview | bytearray, start: int = 0) -> None:
        """Fill memory with the bytes of one tensor, from its byte ``start`` on.

        Raises:
            LoraFormatError: if the file cannot be read, or has changed since its header was read.
        """
        with reading(self.path.name):
            try:
                with self.path.open("rb") as file:
                    file.seek(len(self.header) + entry.begin + start)
                    complete = file.readinto(memory) == len(memory)
                    status = os.fstat(file.fileno())
            except OSError as error:
                raise _unreadable(error) from error
            if not complete or (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
                raise changed()


def read_shard(path: Path, component: str = "") -> Shard:
    """Read the header of one safetensors file, and check it against the size of the file.

    Raises:
        LoraFormatError: if the file cannot be read, or is damaged or truncated.
    """
    with reading(path.name):
        header, status = _read_header(path)
        entries, metadata = parse_header(header[8:])
        shard = Shard(path, header, tuple(entries), metadata, component, status.st_mtime_ns)
        if shard.size != status.st_size:
            raise LoraFormatError(
                f"the file needs {shard.size} bytes and has {status.st_size}; download it again"
            )
        return shard


def read_tensor(shard: Shard, entry: Entry, first: int = 0, last: int | None = None) -> Tensor:
    """Read one tensor of a file in its own dtype, or its rows from ``first`` to before ``last``.

    The file is not mapped: mapped pages would count as memory of the process.

    Raises:
        LoraFormatError: if the file has changed, or this torch does not know the dtype.
    """
    with reading(shard.path.name):
        dtype = torch_dtype(entry)
    shape, start = entry.shape, 0
    if shape:
        rows = shape[0] if last is None else min(last, shape[0])
        shape = (max(rows - first, 0), *shape[1:])
        start = first * math.prod(shape[1:]) * dtype.itemsize
    tensor = torch.empty(shape, dtype=dtype)  # torch aligns what it allocates
    if tensor.numel():
        shard.read_into(entry, tensor.flatten().view(torch.uint8).numpy().data, start)
    return tensor


def _read_header(path: Path) -> tuple[bytes, os.stat_result]:
    """Return the header of a file with its length before it, and the state of the file."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            start = file.read(64)
            if start.startswith(b"GGUF"):
                raise LoraFormatError(
                    "this is a GGUF file, whose weights are packed in blocks; use the original weights"
                )
            refuse_by_bytes(start, size)
            length = struct.unpack("<Q", start[:8])[0]
            if length > _MAX_HEADER or length + 8 > size:
                raise LoraFormatError("this is cut off or not a safetensors file; download it again")
            file.seek(0)
            return file.read(8 + length), status
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> LoraFormatError:
    return LoraFormatError(f"the file cannot be read: {error.strerror or error}")
