"""One safetensors file of a model: what its header says, without reading any tensor."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import LoraFormatError, reading
from .header import Entry, parse_header
from .lookalike import refuse_by_bytes

_MAX_HEADER = 100 << 20  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file. ``header`` is everything before the data, including the length.

    ``component`` is the part of a pipeline whose folder it is in; nothing for any other file.
    """

    path: Path
    header: bytes
    entries: tuple[Entry, ...]  # in the order of their data
    metadata: Mapping[str, str] = field(default_factory=dict)
    component: str = ""

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return len(self.header) + (self.entries[-1].end if self.entries else 0)

    def read_into(self, entry: Entry, memory: memoryview | bytearray) -> bool:
        """Read the bytes of one tensor into memory of their size; False if the file is shorter by now."""
        with self.path.open("rb") as file:
            file.seek(len(self.header) + entry.begin)
            return file.readinto(memory) == entry.end - entry.begin


def read_shard(path: Path, component: str = "") -> Shard:
    """Read the header of one safetensors file, and check it against the size of the file.

    Raises:
        LoraFormatError: if the file cannot be read, or is damaged or truncated.
    """
    with reading(path.name):
        header, size = _read_header(path)
        entries, metadata = parse_header(header[8:])
        shard = Shard(path, header, tuple(entries), metadata, component)
        if shard.size != size:
            raise LoraFormatError(f"the file needs {shard.size} bytes and has {size}; download it again")
        return shard


def _read_header(path: Path) -> tuple[bytes, int]:
    """Return the header of a file with its length before it, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(64)
            if start.startswith(b"GGUF"):
                raise LoraFormatError(
                    "this is a GGUF file, whose weights are packed in blocks, so no LoRA can be added to "
                    "them; use the model's original weights"
                )
            refuse_by_bytes(start, size)
            length = struct.unpack("<Q", start[:8])[0]
            if length > _MAX_HEADER or length + 8 > size:
                raise LoraFormatError("this is cut off or not a safetensors file; download it again")
            file.seek(0)
            return file.read(8 + length), size
    except OSError as error:
        raise LoraFormatError(f"the file cannot be read: {error.strerror or error}") from error
