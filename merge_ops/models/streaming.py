"""Copying a shard tensor by tensor, adding the deltas on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import MergeError, reading
from ..formats.container import changed, file_digest, is_finite
from ..formats.header import Entry, torch_dtype
from ..merging.merged import Merged
from ..formats.shard import Shard, read_shard

from .places import Place

_BLOCK = 4 << 20

Piece = bytes | memoryview


class Digest(Protocol):
    """A hash object of ``hashlib``."""

    def update(self, data: Piece, /) -> None: ...


@dataclass(frozen=True, slots=True)
class FusedTensor:
    """One changed tensor, with the Frobenius norms of its weight, its delta and its rounding error."""

    name: str
    layer: str
    shard: str
    weight: float
    delta: float
    rounding: float


def write_shard(
    shard: Shard, out: Path, places: dict[str, Place], merged: Merged, report: Callable[[int, str], None]
) -> list[FusedTensor]:
    """Write a shard with the merge added, read it back, and return a line for each changed tensor.

    Raises:
        LoraFormatError: if the source shard changes in the meantime.
        MergeError: if a result overflows its dtype, or the file read back differs.
    """
    digest = hashlib.sha256(shard.header)
    changes: list[FusedTensor] = []
    # one buffer for all tensors: allocating and freeing pieces would fragment the heap
    buffer = bytearray(max((e.end - e.begin for e in shard.entries if e.name in places), default=0))
    with reading(shard.path.name), shard.path.open("rb") as source, out.open("xb") as file:
        before = os.fstat(source.fileno())
        file.write(shard.header)
        source.seek(len(shard.header))
        for done, entry in enumerate(shard.entries):
            report(done, entry.name)
            pieces = _blocks(source, entry, shard)
            if entry.name in places:
                pieces = _fused(
                    _read(source, entry, shard, buffer), entry, places[entry.name], merged, shard, changes
                )
            _write(pieces, file, digest)
        file.flush()
        os.fsync(file.fileno())
        after = os.fstat(source.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise changed()
    if read_shard(out).entries != shard.entries or file_digest(out) != digest.hexdigest():
        raise MergeError(f"{out.name} read back differs from what was computed; nothing was saved")
    return changes


def _fused(
    raw: memoryview, entry: Entry, place: Place, merged: Merged, shard: Shard, changes: list[FusedTensor]
) -> Iterator[Piece]:
    """Yield the bytes of a tensor with its delta added, and append its line to ``changes``."""
    weight = torch.frombuffer(raw, dtype=torch_dtype(entry)).view(entry.shape)
    size = _norm(weight)
    exact = weight if weight.dtype in (torch.float32, torch.float64) else weight.to(torch.float32)
    delta = _change(exact, place.layer, merged)
    step = _norm(delta)
    exact += delta.T if place.transposed else delta
    del delta, raw
    stored = weight if exact is weight else weight.copy_(exact)
    lost = 0.0 if exact is weight else _norm(exact.sub_(stored))
    del exact
    if not all(is_finite(part) for part in torch.split(stored.flatten(), _BLOCK)):
        raise MergeError(
            f"{entry.name} with {place.layer} overflows {entry.dtype}, or the weight was not finite before; "
            "nothing was saved"
        )
    changes.append(FusedTensor(entry.name, place.layer, shard.path.name, size, step, lost))
    yield stored.flatten().view(torch.uint8).numpy().data


def _change(weight: Tensor, layer: str, merged: Merged) -> Tensor:
    """Return what is added to a weight; a whole weight in the merge replaces it."""
    whole = merged.whole_weights.get(layer)
    change = torch.zeros(()) if layer not in merged.layers else merged.delta(layer, dtype=torch.float32)
    if whole is not None:
        change = change.to("cpu") + (whole.value.to("cpu", weight.dtype) - weight)
    return change.to("cpu")


def _write(pieces: Iterator[Piece], file: BufferedWriter, digest: Digest) -> None:
    for piece in pieces:
        digest.update(piece)
        file.write(piece)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _read(source: BufferedReader, entry: Entry, shard: Shard, buffer: bytearray) -> memoryview:
    raw = memoryview(buffer)[: entry.end - entry.begin]
    if source.readinto(raw) != len(raw):
        raise changed()
    return raw


def _blocks(source: BufferedReader, entry: Entry, shard: Shard) -> Iterator[Piece]:
    left = entry.end - entry.begin
    while left:
        piece = source.read(min(left, _BLOCK))
        if not piece:
            raise changed()
        left -= len(piece)
        yield piece
