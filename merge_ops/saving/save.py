"""Saving a merge as a LoRA file: store the layers, lay out the file, write it verified, and report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ParameterError, did_you_mean
from ..extracting import Extracted
from ..lora import Lora
from ..merging.merged import Merged
from ..recipes import recipe_of
from .experts import at_one_rank
from .file_names import check_destination
from .ia3 import check_alone, ia3_errors, ia3_tensors
from .kept import Kept, kept_by_extraction, suggest_rank
from .metadata import file_metadata, peft_config
from .stems import module_names
from .stored import Progress, StoredLayer, relative, store_layers
from .tensors import FORMATS, file_tensors, resolve_format, whole_weight_tensors
from .verified import Content, write_verified

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
    rank: int | None = None,
    format: str = "auto",
    dtype: torch.dtype = torch.float16,
    *,
    overwrite: bool = False,
    stems: dict[str, str] | None = None,
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
        rank: truncate to this rank. None writes low-rank layers exactly and truncates full-rank ones to the
            sum of the source ranks, which is the size of a linear merge.
        format: ``kohya``, ``diffusers``, ``peft``, or ``auto`` for the format of the first LoRA.
        dtype: float16, bfloat16 or float32.
        overwrite: replace an existing file; otherwise an existing file is an error.
        stems: what the kohya keys of each layer begin with, for programs with layer names of their own.
        progress: called as ``progress(done, total, layer)``.

    The file is read back and must match the computed result bit for bit before it gets its final name. On
    failure nothing is left behind.

    Raises:
        ParameterError: for an unknown format or dtype, a wrong suffix, or an existing file.
        MergeError: if the format cannot hold the layers, or the file read back differs.
    """
    target = Path(path)
    form = check_output(target, merged.loras, format, rank, dtype, overwrite=overwrite)
    check_alone(merged.ia3, len(merged.layers), form)
    if stems is None:
        stems = module_names((*merged.layers, *merged.whole_weights), form, merged.loras)
        stems |= merged.stems if isinstance(merged, Extracted) else {}
    stored = store_layers(merged, form, rank, dtype, progress)
    kept = _kept(merged, stored)
    content, lines = _lay_out(merged, stored, stems, target.stem, form, dtype, rank)
    size = write_verified(target, content, overwrite)
    if progress is not None:
        progress(len(merged.layers), len(merged.layers), "")
    return _report(target, form, lines, size, kept)


def check_output(
    path: str | os.PathLike[str],
    loras: Sequence[Lora],
    format: str = "auto",
    rank: int | None = None,
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


def _check_options(form: str, rank: int | None, dtype: torch.dtype) -> None:
    if form not in FORMATS:
        raise ParameterError(f"unknown format {form!r}{did_you_mean(form, ('auto', *FORMATS))}")
    if dtype not in _DTYPES:
        raise ParameterError(f"cannot save as {dtype}; use float16, bfloat16 or float32")
    if rank is not None and rank < 1:
        raise ParameterError(f"rank must be 1 or more, not {rank}")


_Line = tuple[SavedLayer, float, float]  # a line of the report, with its squared error and squared norm


def _lay_out(
    merged: Merged, stored: dict[str, StoredLayer], stems: dict[str, str], title: str, form: str,
    dtype: torch.dtype, rank: int | None,
) -> tuple[Content, list[_Line]]:  # fmt: skip
    """Return the tensors, metadata and configuration of the file, and the lines of the report."""
    layers = at_one_rank({name: part.layer for name, part in stored.items()})
    factors = ia3_tensors(merged.ia3, dtype)
    tensors = {
        **file_tensors(layers, stems, form),
        **whole_weight_tensors(merged.whole_weights, stems, form, layers),
        **factors,
    }
    metadata = file_metadata(layers, form, merged.loras, recipe_of(merged, rank), title, tensors)
    config = None
    if form == "peft":
        config = peft_config(layers, stems, merged.loras, merged.whole_weights, merged.ia3)
    lines = [*_layer_lines(stored), *_ia3_lines(ia3_errors(merged.ia3, factors))]
    return Content(tensors, metadata, config, layers, stems, merged.whole_weights), lines


def _kept(merged: Merged, stored: dict[str, StoredLayer]) -> Kept:
    whole = sum(part.whole for part in stored.values())
    left = sum(max(part.norm - part.error, 0.0) for part in stored.values())
    ranks = [part.layer.rank for part in stored.values() if part.energy_kept < 1]
    if isinstance(merged, Extracted):
        return kept_by_extraction(merged, left / whole * (1 - merged.found.lost), max(ranks, default=0))
    kept = Kept(left / whole if whole else 1.0, max(ranks, default=0))
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
