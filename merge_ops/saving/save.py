"""Saving that proves itself: write beside the target, read back with our own reader, compare, then rename."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import MergeError, ParameterError, did_you_mean
from ..formats.container import is_finite
from ..lora import LowRank
from ..merging.merged import Merged
from ..merging.merged_layer import MergedLayer
from ..merging.scratch import Scratch
from ..recipes import recipe_of
from .experts import at_one_rank
from .file_names import check_name, is_folder
from .ia3 import check_alone, ia3_errors, ia3_tensors
from .metadata import file_metadata, peft_config
from .rounding import rounded, truncation_error
from .tensors import FORMATS, file_tensors, module_names, resolve_format, whole_weight_tensors
from .verified import EXISTS, write_verified

_HALF = (torch.float16, torch.bfloat16)
_DTYPES = (*_HALF, torch.float32)


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """One layer of a saved file: its rank, and the relative Frobenius error of its delta.

    Factors of (IA)3 have rank 0, and their error is that of what they add to 1.
    """

    name: str
    rank: int
    energy_kept: float
    error: float


@dataclass(frozen=True, slots=True)
class SaveReport:
    """What was written, and how far the file is from the merge: truncation and rounding together.

    Errors are relative Frobenius norms: ``largest_error`` of the worst layer, ``total_error`` of all.
    """

    path: str
    format: str
    layers: tuple[SavedLayer, ...]
    largest_error: float
    total_error: float
    size: int  # bytes

    def to_dict(self) -> dict[str, Any]:
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
    progress: Callable[[int, int, str], None] | None = None,
) -> SaveReport:
    """Write a merge as a LoRA file that other tools load at strength 1.

    >>> saved = merge_ops.save(merged, "smaller.safetensors", rank=4)
    >>> saved.format, len(saved.layers), saved.layers[0].rank
    ('kohya', 2, 4)
    >>> saved.largest_error < 0.5  # of the layer that lost most, relative to its norm
    True

    Args:
        merged: what ``merge`` returned.
        path: a ``.safetensors`` file, or for ``format='peft'`` a folder.
        rank: truncate to this rank. None writes low-rank layers exactly and truncates full-rank ones to the
            sum of the source ranks, which is the size of a linear merge.
        format: ``kohya``, ``diffusers``, ``peft``, or ``auto``: as the first LoRA of the merge.
        dtype: float16, bfloat16 or float32.
        overwrite: replace an existing file; otherwise it is left alone and an error is raised.
        stems: what the keys of each layer begin with in the kohya format, for readers with their own names.
        progress: called as ``progress(done, total, layer)``.

    The file is read back and must hold, bit for bit, what was computed; only then does it get its name.
    Nothing is left behind on failure.

    Raises:
        ParameterError: for an unknown format or dtype, a wrong suffix, or an existing file.
        MergeError: if the format cannot hold the layers, or the file read back differs.
    """
    target, form = Path(path), resolve_format(format, merged.loras[0])
    _check_request(target, form, rank, dtype, overwrite)
    check_alone(merged.ia3, len(merged.layers), form)
    stems = stems or module_names((*merged.layers, *merged.whole_weights), form, merged.loras)
    alpha = _common_rank(merged, rank) if form == "kohya" else None
    layers: dict[str, LowRank] = {}
    scratch = Scratch()
    saved, squares = [], [0.0, 0.0]
    for done, name in enumerate(merged.layers):
        if progress is not None:
            progress(done, len(merged.layers), name)
        layers[name], line, error, norm = _round(name, merged.layer(name), rank, dtype, alpha, scratch)
        saved.append(line)
        squares = [squares[0] + error, squares[1] + norm]
    layers = at_one_rank(layers)
    recipe = recipe_of(merged, rank)
    tensors = file_tensors(layers, stems, form) | whole_weight_tensors(
        merged.whole_weights, stems, form, layers
    )
    factors = ia3_tensors(merged.ia3, dtype)
    for name, error, norm in ia3_errors(merged.ia3, factors):
        saved.append(SavedLayer(name, 0, 1.0, math.sqrt(error / norm) if norm else 0.0))
        squares = [squares[0] + error, squares[1] + norm]
    tensors |= factors
    metadata = file_metadata(layers, form, merged.loras, recipe, target.stem, tensors)
    config = (
        peft_config(layers, stems, merged.loras, merged.whole_weights, merged.ia3) if form == "peft" else None
    )
    size = write_verified(target, tensors, metadata, config, layers, stems, merged.whole_weights, overwrite)
    if progress is not None:
        progress(len(merged.layers), len(merged.layers), "")
    largest = max((line.error for line in saved), default=0.0)
    total = math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0
    return SaveReport(str(target), form, tuple(saved), largest, total, size)


def _check_request(target: Path, form: str, rank: int | None, dtype: torch.dtype, overwrite: bool) -> None:
    if form not in FORMATS:
        raise ParameterError(f"unknown format {form!r}{did_you_mean(form, ('auto', *FORMATS))}")
    if dtype not in _DTYPES:
        raise ParameterError(f"cannot save as {dtype}; use float16, bfloat16 or float32")
    if rank is not None and rank < 1:
        raise ParameterError(f"rank must be 1 or more, not {rank}")
    if form != "peft" and target.suffix != ".safetensors":
        raise ParameterError(
            f"{target.name!r} must end in .safetensors (or save a folder with format='peft')"
        )
    if form == "peft" and target.suffix == ".safetensors":
        raise ParameterError(
            f"format 'peft' writes a folder, so {target.name!r} must not end in .safetensors"
        )
    check_name(target.name)
    if not is_folder(target.parent):
        raise ParameterError(f"the folder {target.parent.name[:80]!r} does not exist; make it first")
    if target.exists() and not overwrite:
        raise ParameterError(EXISTS.format(target.name))
    if target.exists() and target.is_dir() != (form == "peft"):
        kind = "folder" if target.is_dir() else "file"
        raise ParameterError(f"{target.name} is a {kind}, which format {form!r} cannot replace")


def _limit(layer: MergedLayer, rank: int | None) -> int:
    """The rank that a layer is written with at most."""
    held = layer.fixed.rank if layer.fixed is not None else sum(layer.aligned.ranks)
    wanted = held if rank is None else min(rank, held) if layer.is_low_rank else rank
    return min(wanted, *layer.template.matrix_shape)


def _common_rank(merged: Merged, rank: int | None) -> int:
    matrices = [layer for layer in merged.layers.values() if layer.template.layout != "vector"]
    return Counter(_limit(layer, rank) for layer in matrices).most_common(1)[0][0] if matrices else 1


def _round(
    name: str,
    layer: MergedLayer,
    rank: int | None,
    dtype: torch.dtype,
    alpha: float | None,
    scratch: Scratch,
) -> tuple[LowRank, SavedLayer, float, float]:
    """The layer in the file's rank and dtype, its line of the report, its squared error and norm.

    Its scale is alpha over rank, or 1 without alpha.
    """
    if layer.template.layout == "vector":
        return _round_vector(name, layer, dtype)
    exact = layer.factors(even=False) or layer.matrix(scratch=scratch)
    limit, kept = _limit(layer, rank), 1.0
    whole = isinstance(exact, tuple) and exact[1].shape[0] <= limit
    if isinstance(exact, tuple) and whole:
        up, down = exact
    else:
        svd = layer.svd(limit, exact)
        (up, down), kept = svd.balanced(), svd.energy_kept
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    up, down, error, norm = rounded(up if scale == 1 else up / scale, down, dtype)
    model = layer.template
    stored = LowRank(up, down, scale, model.layout, model.kernel, padded_to=layer.padded_to)
    _check_finite(name, stored, dtype)
    if whole:
        error, norm = error * scale**2, norm * scale**2
    else:
        error, norm = truncation_error(exact, stored)
    relative = math.sqrt(error / norm) if norm else 0.0
    return stored, SavedLayer(name, stored.rank, layer.energy_kept * kept, relative), error, norm


def _round_vector(
    name: str, layer: MergedLayer, dtype: torch.dtype
) -> tuple[LowRank, SavedLayer, float, float]:
    """A bias or the weight of a norm, which is stored as it is."""
    exact = layer.matrix().cpu()
    stored = LowRank(exact.to(dtype), torch.ones(1, 1, dtype=dtype), 1.0, "vector")
    _check_finite(name, stored, dtype)
    difference = stored.up.to(torch.float64) - exact
    error, norm = float(difference.square().sum()), float(exact.to(torch.float64).square().sum())
    return stored, SavedLayer(name, 1, 1.0, math.sqrt(error / norm) if norm else 0.0), error, norm


def _check_finite(name: str, stored: LowRank, dtype: torch.dtype) -> None:
    if not (is_finite(stored.up) and is_finite(stored.down)):
        raise MergeError(f"{name} does not fit into {dtype}; save it with dtype=torch.float32")
