"""Saving a merge as a LoRA file: store the layers, lay out the file, write it verified, and report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ParameterError, did_you_mean
from ..extracting import Extracted
from ..lora import Lora
from ..merging.merged import Merged
from ..merging.rank_rule import RankRule
from ..progress import Progress
from .by_need import settle_ranks
from .carried import check_stated
from .file_names import FORMATS, check_destination
from .ia3 import check_alone, ia3_errors
from .kept import DIFFERENCE, Kept, kept_by_extraction, suggest_rank
from .layout import Layout
from .stems import module_names, stems_of
from .stored import StoredLayer, relative, store_layers
from .tensors import resolve_format
from .verified import write_verified

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """One layer of a saved file: its rank, and the relative Frobenius error of its delta.

    (IA)3 factors have rank 0, and their error is relative to what they add to 1.
    """

    name: str
    rank: int
    energy_kept: float
    error: float


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was written, and how far the file is from the merge, by truncation and rounding together.

    Errors are relative Frobenius norms: ``largest_error`` of the worst layer, ``total_error`` of all layers.
    ``kept`` is the share of the whole merge, as it was before any truncation, that the file keeps.
    """

    path: str
    format: str
    layers: tuple[SavedLayer, ...]
    largest_error: float
    total_error: float
    size: int  # bytes
    kept: Kept

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return asdict(self)


def save(
    merged: Merged,
    path: str | os.PathLike[str],
    rank: int | RankRule | None = None,
    format: str = "auto",
    dtype: torch.dtype = torch.float16,
    *,
    overwrite: bool = False,
    stems: dict[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> SaveReport:
    """Write a merge as a LoRA file that other tools load at strength 1.

    >>> saved = merge_ops.save(merged, "smaller.safetensors", rank=4)
    >>> saved.format, len(saved.layers), saved.layers[0].rank
    ('kohya', 2, 4)
    >>> saved.largest_error < 0.5  # of the layer that lost most, relative to its norm
    True

    Args:
        merged: what ``merge`` returned.
        path: a ``.safetensors`` file, or a folder for ``format='peft'``.
        rank: truncate to this rank, or to the ranks that a ``RankRule`` chooses by energy or by the size of
            the file. None writes low-rank layers exactly and truncates full-rank ones to the
            sum of the source ranks, which is the size of a linear merge.
        format: ``kohya``, ``diffusers``, ``peft``, or ``auto`` for the format of the first LoRA.
        dtype: float16, bfloat16 or float32.
        overwrite: replace an existing file; otherwise an existing file is an error.
        stems: what the kohya keys of each layer begin with, for programs with layer names of their own.
        metadata: more of it, such as ``modelspec.description`` or ``modelspec.thumbnail``; it replaces what
            is carried over from the sources.
        progress: called as ``progress(done, total, layer)``.

    The file is read back and must match the computed result bit for bit before it gets its final name. On
    failure nothing is left behind.

    Raises:
        ParameterError: for an unknown format or dtype, a wrong suffix, an existing file, or metadata that
            only saving itself can know.
        MergeError: if the format cannot hold the layers, or the file read back differs.
    """
    target = Path(path)
    form = check_output(target, merged.loras, format, rank, dtype, overwrite=overwrite)
    check_alone(merged.ia3, len(merged.layers), form)
    stems = stems or stems_of(merged, form)
    layout = Layout(merged, form, dtype, stems, target.stem, check_stated(metadata or {}))
    if isinstance(rank, RankRule):
        rank, ranks = settle_ranks(layout, rank, progress)
        stored = store_layers(merged, form, ranks, dtype, progress)
    else:
        stored = store_layers(merged, form, rank, dtype, progress)
    kept = _kept(merged, stored, isinstance(rank, RankRule))
    content = layout.content({name: part.layer for name, part in stored.items()}, rank)
    size = write_verified(target, content, overwrite)
    if progress is not None:
        progress(len(merged.layers), len(merged.layers), "")
    return _report(target, form, _lines(merged, stored, content.tensors), size, kept)


def check_output(
    path: str | os.PathLike[str],
    loras: Sequence[Lora],
    format: str = "auto",
    rank: int | RankRule | None = None,
    dtype: torch.dtype = torch.float16,
    *,
    overwrite: bool = False,
    layers: Iterable[str] = (),
) -> str:
    """Refuse before a merge is made what ``save`` would refuse afterwards; return the format.

    ``loras`` are those of the merge, and ``layers`` those that it will have, if they are known; see ``save``
    for the other arguments.

    Raises:
        ParameterError: for an unknown format or dtype, a wrong suffix, a name that some system cannot hold,
            a missing folder, an existing file.
        MergeError: if the format cannot hold the layers.
    """
    form = resolve_format(format, loras[0])
    _check_options(form, rank, dtype)
    check_destination(Path(path), form, overwrite)
    module_names(layers, form, list(loras))
    return form


def _check_options(form: str, rank: int | RankRule | None, dtype: torch.dtype) -> None:
    if form not in FORMATS:
        raise ParameterError(f"unknown format {form!r}{did_you_mean(form, ('auto', *FORMATS))}")
    if dtype not in _DTYPES:
        raise ParameterError(f"cannot save as {dtype}; use float16, bfloat16 or float32")
    if isinstance(rank, int) and rank < 1:
        raise ParameterError(f"rank must be 1 or more, not {rank}")


_Line = tuple[SavedLayer, float, float]  # a line of the report, with its squared error and squared norm


def _lines(merged: Merged, stored: dict[str, StoredLayer], tensors: dict[str, torch.Tensor]) -> list[_Line]:
    """Return the lines of the report."""
    return [*_layer_lines(stored), *_ia3_lines(ia3_errors(merged.ia3, tensors))]


def _kept(merged: Merged, stored: dict[str, StoredLayer], by_need: bool) -> Kept:
    whole = sum(part.whole for part in stored.values())
    left = sum(max(part.norm - part.error, 0.0) for part in stored.values())
    ranks = [part.layer.rank for part in stored.values() if part.energy_kept < 1]
    energy = left / whole if whole else 1.0
    if isinstance(merged, Extracted):
        energy *= 1 - merged.found.lost
    if by_need:
        every = [part.layer.rank for part in stored.values() if part.layer.layout != "vector"]
        kept = Kept(energy, max(every, default=0), smallest=min(every, default=0))
        return replace(kept, whole=DIFFERENCE) if isinstance(merged, Extracted) else kept
    if isinstance(merged, Extracted):
        return kept_by_extraction(merged, energy, max(ranks, default=0))
    kept = Kept(energy, max(ranks, default=0))
    if not kept.is_low or not kept.rank:
        return kept
    wider, estimated = suggest_rank(merged, kept.rank)
    return replace(kept, wider=wider, estimated=estimated)


def _layer_lines(stored: dict[str, StoredLayer]) -> Iterator[_Line]:
    for name, part in stored.items():
        error = relative(part.error, part.norm)
        yield SavedLayer(name, part.layer.rank, part.energy_kept, error), part.error, part.norm


def _ia3_lines(errors: Iterator[tuple[str, float, float]]) -> Iterator[_Line]:
    for name, error, norm in errors:
        yield SavedLayer(name, 0, 1.0, relative(error, norm)), error, norm


def _report(target: Path, form: str, lines: list[_Line], size: int, kept: Kept) -> SaveReport:
    saved = tuple(line for line, _, _ in lines)
    error = norm = 0.0
    for _, own_error, own_norm in lines:
        error, norm = error + own_error, norm + own_norm
    largest = max((line.error for line in saved), default=0.0)
    return SaveReport(str(target), form, saved, largest, relative(error, norm), size, kept)
