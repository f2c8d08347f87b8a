"""Weights of a base model from its files: each is read when it is asked for, and no other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..names.spelling import DOTTED_COMPONENTS
from .layer_index import LayerIndex, Span
from .quantised import Quantisation
from .shard import Shard, read_shard


class BaseFiles:
    """The weights of a checkpoint by layer: called, it reads one, or gives None where it has none."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._index = LayerIndex(shards)
        self._files: dict[tuple[str, str], tuple[Shard, Quantisation]] = {}
        for shard in shards:
            stored = Quantisation(shard)
            for entry in shard.entries:
                self._files.setdefault((shard.component, entry.name), (shard, stored))

    def __call__(self, layer: str) -> Tensor | None:
        spans = self._index.find(layer)
        if not spans:
            return None
        parts = [self._rows(span) for span in spans]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return torch.cat(weight.chunk(2)[::-1]) if spans[0].swapped else weight

    def __contains__(self, layer: object) -> bool:
        return isinstance(layer, str) and bool(self._index.find(layer))

    def _rows(self, span: Span) -> Tensor:
        shard, stored = self._files[span.component, span.entry.name]
        reason = stored.why_unreadable(span.entry)
        if reason is not None:
            raise LoraFormatError(
                f"{span.entry.name} of {shard.path.name} is quantised ({reason}); give the original weights "
                "as the base model"
            )
        weight = stored.read(span.entry)
        weight = weight.T if span.turned else weight
        return weight if span.rows is None else weight.narrow(0, *span.rows).clone()


def open_base(path: str | os.PathLike[str]) -> BaseFiles:
    """A function from a layer's name to its weight in a checkpoint; None where it has none.

    ``path`` is a safetensors file, or a folder of one: of a model or of a whole pipeline, sharded or not. The
    spelling of names does not matter, nor whether a trainer flattened them, nor whose layout the file has.

    Raises:
        LoraFormatError: if there is no safetensors file, or one cannot be read.
    """
    where = Path(path)
    shards = [read_shard(file, component) for component, file in _files(where)]
    if not shards:
        raise LoraFormatError(f"{where.name} holds no .safetensors file of a base model; check the path")
    return BaseFiles(shards)


def _files(where: Path) -> Iterator[tuple[str, Path]]:
    """The component that a file belongs to, or nothing, and the file; a variant comes after the original."""
    if where.is_file():
        yield "", where
    elif where.is_dir():
        for component in ("", *DOTTED_COMPONENTS):
            found = (where / component).glob("*.safetensors")
            yield from (
                (component, file) for file in sorted(found, key=lambda f: (f.name.count("."), f.name))
            )
