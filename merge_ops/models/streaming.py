"""Copying a shard tensor by tensor, adding the deltas on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedRandom, BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MergeError, reading
from ..formats.container import changed
from ..formats.header import Entry, torch_dtype
from ..formats.quantised import Quantisation
from ..formats.shard import Shard, read_shard, read_tensor
from ..merging.merged import Merged
from .places import Place, Places
from .stored_weight import add_layers, check_finite, norm, read_exact, store

_BLOCK = 4 << 20

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class FusedTensor:
    """One changed tensor, with the Frobenius norms of its weight, its delta and its rounding error."""

    name: str
    layer: str  # several, joined by " + ", where they are rows of one tensor
    shard: str
    weight: float
    delta: float
    rounding: float


@dataclass(slots=True)
class _Written:
    """What must be in the file when it is read back, and what was changed."""

    digests: dict[str, bytes] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)  # fresh scales, by their tensor
    changes: list[FusedTensor] = field(default_factory=list)


def write_shard(
    shard: Shard,
    out: Path,
    places: Places,
    merged: Merged,
    report: Callable[[int, str], None],
    header: bytes | None = None,
) -> list[FusedTensor]:
    """Write a shard with the merge added, read it back, and return a line for each changed tensor.

    ``header`` is written in place of the shard's own, and must describe the same tensors.

    Raises:
        LoraFormatError: if the source shard changes in the meantime.
        MergeError: if a result overflows its dtype, or the file read back differs.
    """
    header = shard.header if header is None else header
    own = {
        e.name: places[shard.component, e.name] for e in shard.entries if (shard.component, e.name) in places
    }
    written, stored = _Written(), Quantisation(shard)
    # one buffer for all tensors: allocating and freeing pieces would fragment the heap
    buffer = bytearray(max((e.end - e.begin for e in shard.entries if e.name in own), default=0))
    with reading(shard.path.name), shard.path.open("rb") as source, out.open("xb+") as file:
        before = os.fstat(source.fileno())
        file.write(header)
        source.seek(len(shard.header))
        for done, entry in enumerate(shard.entries):
            report(done, entry.name)
            pieces = _blocks(source, entry)
            if entry.name in own:
                scale = stored.scale(entry)
                raw = _read(source, entry, buffer)
                pieces = _fused(raw, entry, own[entry.name], merged, shard, scale, written)
            written.digests[entry.name] = _write(pieces, file)
        _write_scales(file, len(header), shard, written)
        file.flush()
        os.fsync(file.fileno())
        after = os.fstat(source.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise changed()
    _verify(out, shard, header, written)
    return written.changes


def _fused(
    raw: memoryview, entry: Entry, places: tuple[Place, ...], merged: Merged, shard: Shard,
    scaled_by: Entry | None, written: _Written,
) -> Iterator[Piece]:  # fmt: skip
    """Yield the bytes of a tensor with its deltas added, and note its line and its fresh scale."""
    weight = torch.frombuffer(raw, dtype=torch_dtype(entry)).view(entry.shape) if raw else _empty(entry)
    scale = None if scaled_by is None else read_tensor(shard, scaled_by)
    exact = read_exact(weight, scale)
    size = norm(exact)
    layers = " + ".join(place.layer for place in places)
    step = add_layers(exact, places, merged)
    fresh = store(exact, weight, entry, scale)
    if scaled_by is not None and fresh is not None:
        written.scales[scaled_by.name] = fresh
    lost = 0.0 if weight is exact else norm(exact.sub_(read_exact(weight, fresh)))
    del exact
    check_finite(weight, entry, layers)
    written.changes.append(FusedTensor(entry.name, layers, shard.path.name, size, step, lost))
    yield weight.flatten().view(torch.uint8).numpy().data


def _empty(entry: Entry) -> Tensor:
    return torch.empty(entry.shape, dtype=torch_dtype(entry))


def _write_scales(file: BufferedRandom, start: int, shard: Shard, written: _Written) -> None:
    """Write the fresh scales in place of those that were copied; a scale may stand before its weight."""
    for entry in shard.entries:
        if entry.name in written.scales:
            piece = written.scales[entry.name].flatten().contiguous().view(torch.uint8).numpy().tobytes()
            file.seek(start + entry.begin)
            written.digests[entry.name] = _write(iter([piece]), file)


def _verify(out: Path, shard: Shard, header: bytes, written: _Written) -> None:
    """Read the file back, and require its header and every tensor as they were computed."""
    read = read_shard(out)
    same = read.header == header and read.entries == shard.entries
    with out.open("rb") as file:
        file.seek(len(read.header))
        for entry in read.entries if same else ():
            digest = hashlib.sha256()
            for piece in _blocks(file, entry):
                digest.update(piece)
            same = same and digest.digest() == written.digests[entry.name]
    if not same:
        raise MergeError(f"{out.name} read back differs from what was computed; nothing was saved")


def _write(pieces: Iterator[Piece], file: BufferedRandom) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    return digest.digest()


def _read(source: BufferedReader, entry: Entry, buffer: bytearray) -> memoryview:
    raw = memoryview(buffer)[: entry.end - entry.begin]
    if source.readinto(raw) != len(raw):
        raise changed()
    return raw


def _blocks(source: BufferedReader, entry: Entry) -> Iterator[Piece]:
    left = entry.end - entry.begin
    while left:
        piece = source.read(min(left, _BLOCK))
        if not piece:
            raise changed()
        left -= len(piece)
        yield piece
