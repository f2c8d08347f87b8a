"""Opening a safetensors file with care: what is not one is named, and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import LoraFormatError, MergeError

_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
_MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format itself

# the bits of a magnitude that is infinite, by dtype; anything above is NaN
_INFINITY = {
    torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
}


def read_container(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return ``(tensors, metadata)`` of a safetensors file, or raise LoraFormatError naming what it is."""
    if path.suffix.lower() in _PICKLES:
        raise LoraFormatError(
            f"{path.name} is a pickle, which can run code when it is opened; convert it to .safetensors first"
        )
    metadata = _read_header(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise LoraFormatError(f"{path.name} is not a valid safetensors file: {error}") from error
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise LoraFormatError(
                f"{path.name}: {name} holds NaN or infinity; the file is damaged, use another copy"
            )
    return tensors, metadata


def is_finite(tensor: Tensor) -> bool:
    """False if any entry is NaN or infinite. Integer tensors are finite."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point or is_packed(tensor.dtype):
        return True
    if tensor.dtype not in _INFINITY:
        return bool(torch.isfinite(tensor.to(torch.float32)).all())
    as_int, magnitude, infinity = _INFINITY[tensor.dtype]
    return int((tensor.contiguous().view(as_int) & magnitude).max()) < infinity


def is_packed(dtype: torch.dtype) -> bool:
    """True for dtypes that hold several numbers in one byte, which torch stores but does not convert."""
    return dtype == getattr(torch, "float4_e2m1fn_x2", None)


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


def _read_header(path: Path) -> dict[str, str]:
    """Check the header against the size of the file and return its metadata."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        _refuse_lookalikes(path, start, size)
        length = struct.unpack("<Q", start[:8])[0]
        if length > _MAX_HEADER or length + 8 > size:
            raise LoraFormatError(
                f"{path.name} is not a safetensors file or is cut off: its header needs {length + 8} bytes, "
                f"the file has {size}; download it again"
            )
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        noted = header.pop("__metadata__", None) or {}
        metadata = {str(key): str(value) for key, value in noted.items()}
        needed = max((entry["data_offsets"][1] for entry in header.values()), default=0) + 8 + length
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise LoraFormatError(f"{path.name} is not a safetensors file: its header cannot be read") from error
    if needed != size:
        state = "is cut off" if needed > size else "has bytes behind its end"
        raise LoraFormatError(
            f"{path.name} {state}: it needs {needed} bytes and has {size}; download it again"
        )
    return metadata


def _refuse_lookalikes(path: Path, start: bytes, size: int) -> None:
    if start[8:9] == b"{":  # a safetensors header; the length before it may begin with any byte, "<" as well
        return
    if start.startswith(b"version https://git-lfs"):
        raise LoraFormatError(
            f"{path.name} is a Git-LFS pointer of {size} bytes, not the file itself; "
            "run 'git lfs pull' or download it"
        )
    if start.lstrip()[:1] == b"<":
        raise LoraFormatError(f"{path.name} is a web page, not a safetensors file; download it again")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise LoraFormatError(
            f"{path.name} is a pickle, which can run code when it is opened; convert it to .safetensors first"
        )
    if len(start) < 8:
        raise LoraFormatError(
            f"{path.name} has only {size} bytes and is not a safetensors file; download it again"
        )
