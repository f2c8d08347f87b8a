"""One shard copied tensor by tensor, with deltas added on the way."""

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

from ..errors import MergeError
from ..formats.container import changed, file_digest, is_finite
from ..formats.header import Entry, torch_dtype
from ..merging.merged import Merged
from .folder import Shard, read_shard
from .placing import Target

_BLOCK = 4 << 20

Piece = bytes | memoryview


class Digest(Protocol):
    """What ``hashlib`` gives."""

    def update(self, data: Piece, /) -> None: ...


@dataclass(frozen=True, slots=True)
class FusedTensor:
    """One changed tensor: Frobenius norms of the weight, of the delta, and of what rounding took from it."""

    name: str
    layer: str
    shard: str
    weight: float
    delta: float
    rounding: float


def write_shard(
    shard: Shard, out: Path, targets: dict[str, Target], merged: Merged, report: Callable[[int, str], None]
) -> list[FusedTensor]:
    """Write the shard with the merge in it, and read it back.

    Raises:
        LoraFormatError: if the shard changes meanwhile.
        MergeError: if a result does not fit into its dtype, or the file read back differs.
    """
    digest = hashlib.sha256(shard.header)
    found: list[FusedTensor] = []
    # one buffer for all tensors: pieces that are freed and taken again leave holes in the heap
    buffer = bytearray(max((e.end - e.begin for e in shard.entries if e.name in targets), default=0))
    with shard.path.open("rb") as source, out.open("xb") as file:
        before = os.fstat(source.fileno())
        file.write(shard.header)
        source.seek(len(shard.header))
        for done, entry in enumerate(shard.entries):
            report(done, entry.name)
            pieces = _blocks(source, entry, shard)
            if entry.name in targets:
                pieces = _fused(
                    _read(source, entry, shard, buffer), entry, targets[entry.name], merged, shard, found
                )
            _write(pieces, file, digest)
        file.flush()
        os.fsync(file.fileno())
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed(shard.path.name)
    if read_shard(out).entries != shard.entries or file_digest(out) != digest.hexdigest():
        raise MergeError(f"{out.name} read back differs from what was computed; nothing was saved")
    return found


def _fused(
    raw: memoryview, entry: Entry, target: Target, merged: Merged, shard: Shard, found: list[FusedTensor]
) -> Iterator[Piece]:
    """The bytes of the tensor with its delta added; its line goes to ``found``."""
    weight = torch.frombuffer(raw, dtype=torch_dtype(entry, shard.path.name)).view(entry.shape)
    size = _norm(weight)
    exact = weight if weight.dtype in (torch.float32, torch.float64) else weight.to(torch.float32)
    delta = _change(exact, target.layer, merged)
    step = _norm(delta)
    exact += delta.T if target.turned else delta
    del delta, raw
    stored = weight if exact is weight else weight.copy_(exact)
    lost = 0.0 if exact is weight else _norm(exact.sub_(stored))
    del exact
    if not all(is_finite(part) for part in torch.split(stored.flatten(), _BLOCK)):
        raise MergeError(
            f"{entry.name} with {target.layer} does not fit into {entry.dtype}, or is not finite before; "
            "nothing was saved"
        )
    found.append(FusedTensor(entry.name, target.layer, shard.path.name, size, step, lost))
    yield stored.flatten().view(torch.uint8).numpy().data


def _change(weight: Tensor, layer: str, merged: Merged) -> Tensor:
    """What is added to a weight; a weight that the merge holds as a whole takes its place."""
    replacement = merged.whole_weights.get(layer)
    change = torch.zeros(()) if layer not in merged.layers else merged.delta(layer, dtype=torch.float32)
    if replacement is not None:
        change = change.to("cpu") + (replacement.value.to("cpu", weight.dtype) - weight)
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
        raise changed(shard.path.name)
    return raw


def _blocks(source: BufferedReader, entry: Entry, shard: Shard) -> Iterator[Piece]:
    left = entry.end - entry.begin
    while left:
        piece = source.read(min(left, _BLOCK))
        if not piece:
            raise changed(shard.path.name)
        left -= len(piece)
        yield piece
