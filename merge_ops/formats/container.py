"""Reading a safetensors file with care: other files are named, and nothing is unpickled or memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..adapters.named import is_read
from ..errors import LoraFormatError, MergeError, reading
from ..lora import is_packed
from .header import Entry, parse_header, torch_dtype
from .lookalike import PICKLE, refuse_by_bytes, refuse_by_keys
from .written import Written

_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
_MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format itself

# the bits of a magnitude that is infinite, by dtype; anything above is NaN
_INFINITY = {
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
}


def read_container(
    path: Path, allow_pickle: bool = False, written: Written | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return ``(tensors, metadata)`` of a safetensors file, or raise LoraFormatError naming what it is.

    NaN and infinity are looked for in what is read of a LoRA, unless the file must hold what was ``written``:
    then its bytes are compared with that, one tensor after the other, and the tensors are the written ones.

    The tensors are copies in memory. A mapped file would do until somebody writes into it: a LoRA that is
    trained again under its name would change under a merge, and one that is cut off would end the process.
    ``allow_pickle`` is for files that are pickles by their names.
    """
    with reading(path.name):
        if path.suffix.lower() not in _PICKLES:
            tensors, metadata = _read_safetensors(path, written)
        elif not allow_pickle:
            raise LoraFormatError(PICKLE)
        else:
            from .pickled import read_pickle

            tensors, metadata = read_pickle(path)
        if written is None:
            refuse_damaged(tensors)
        return tensors, metadata


def _read_safetensors(path: Path, written: Written | None) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            entries, metadata = _read_header(file, before.st_size)
            if written is not None:
                written.compare(file, entries, metadata)
                return dict(written.tensors), metadata
            data = _read_data(file, entries[-1].end if entries else 0)
            after = os.fstat(file.fileno())
    except OSError as error:
        raise LoraFormatError(f"the file cannot be read: {error.strerror or error}") from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed()
    tensors = {entry.name: _tensor(data, entry) for entry in entries}
    return tensors, metadata


def refuse_damaged(tensors: Mapping[str, Tensor]) -> None:
    """Raise LoraFormatError if a tensor that is read holds NaN or infinity."""
    for name, tensor in tensors.items():
        if not is_finite(tensor) and is_read(name, tensors):
            raise LoraFormatError(f"{name} holds NaN or infinity; the file is damaged, use another copy")


def is_finite(tensor: Tensor) -> bool:
    """False if any entry is NaN or infinite. Integer tensors are finite."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point or is_packed(tensor.dtype):
        return True
    if tensor.dtype not in _INFINITY:
        return bool(torch.isfinite(tensor.to(torch.float32)).all())
    as_int, magnitude, infinity = _INFINITY[tensor.dtype]
    bits = tensor.contiguous().view(as_int)
    if bits.device.type != "cpu":
        return int((bits & magnitude).max()) < infinity
    # as signed integers, the largest positive number is the maximum; as unsigned, the largest negative one
    signed = bits.numpy()
    unsigned = signed.view(f"u{signed.itemsize}")
    return int(signed.max()) < infinity and int(unsigned.max()) < magnitude + 1 + infinity


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a file in place: safetensors writes it in another order each run."""
    with path.open("rb+") as file:
        try:
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        except (ValueError, KeyError, struct.error) as error:
            raise MergeError(f"{path.name} was not written whole; nothing was saved") from error
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) != length:
            raise MergeError(f"the header of {path.name} is not as expected; nothing was saved")
        file.seek(8)
        file.write(text)


def file_digest(*paths: Path) -> str:
    """SHA-256 over the bytes of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_header(file: BufferedReader, size: int) -> tuple[list[Entry], dict[str, str]]:
    """Check the header against the size of the file before anything is believed of it."""
    start = file.read(64)
    refuse_by_bytes(start, size)
    length = struct.unpack("<Q", start[:8])[0]
    if length > _MAX_HEADER or length + 8 > size:
        raise LoraFormatError(
            f"this is not a safetensors file, or it is cut off: its header needs {length + 8} bytes, "
            f"the file has {size}; download it again"
        )
    file.seek(8)
    raw = file.read(length)
    if len(raw) != length:
        raise changed()
    entries, metadata = parse_header(raw)
    needed = 8 + length + (entries[-1].end if entries else 0)
    if needed != size:
        state = "is cut off" if needed > size else "has extra bytes after its end"
        raise LoraFormatError(f"the file {state}: it needs {needed} bytes and has {size}; download it again")
    refuse_by_keys({entry.name for entry in entries})
    return entries, metadata


def _read_data(file: BufferedReader, size: int) -> Tensor:
    """All bytes behind the header, in one piece of memory: the system gives that in large pages."""
    try:
        data = np.empty(size, np.uint8)
    except MemoryError as error:
        raise LoraFormatError(f"the file does not fit into memory: it takes {size} bytes") from error
    if size and file.readinto(data.data) != size:
        raise changed()
    return torch.from_numpy(data)


def _tensor(data: Tensor, entry: Entry) -> Tensor:
    """One tensor of the data, as a view of it where its place allows that."""
    dtype, raw = torch_dtype(entry), data[entry.begin : entry.end]
    if raw.numel() == 0:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.begin % dtype.itemsize:
        raw = raw.clone()
    packed = is_packed(dtype)  # two numbers in a byte: torch counts the bytes
    shape = (*entry.shape[:-1], entry.shape[-1] // 2) if packed and entry.shape else entry.shape
    if shape != entry.shape and shape[-1] * 2 != entry.shape[-1]:
        raise LoraFormatError(f"{entry.name} has an odd number of half bytes; download it again")
    return raw.view(dtype).reshape(shape)


def changed() -> LoraFormatError:
    """Return the error of a file that somebody writes while it is read."""
    return LoraFormatError("the file changed while it was read; wait until it is written, then try again")
