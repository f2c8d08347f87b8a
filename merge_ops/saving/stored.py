"""Storing a merged layer: its factors at the rank and in the dtype of the file, and the error this makes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import MergeError
from ..formats.container import is_finite
from ..lora import LowRank
from ..merging.merged import Merged
from ..merging.merged_layer import MergedLayer
from ..merging.scratch import Scratch
from ..progress import Progress
from ..steady import total
from .rounding import rounded, truncation_error

Rank = int | Mapping[str, int] | None  # of every layer, or of each by name


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A layer as the file holds it, and how far it is from the merge.

    ``error`` and ``norm`` are the squared Frobenius norms of (stored - merged) and of merged. ``before`` is
    the share of its energy that an earlier truncation of the merge kept.
    """

    layer: LowRank
    energy_kept: float
    error: float
    norm: float
    before: float = 1.0

    @property
    def whole(self) -> float:
        """The squared norm of the layer before any truncation."""
        return self.norm / self.before if self.before else 0.0


def store_layers(
    merged: Merged, form: str, rank: Rank, dtype: torch.dtype, progress: Progress | None
) -> dict[str, StoredLayer]:
    """Return every low-rank layer of a merge as the file holds it, by layer name.

    Args:
        merged: the merge.
        form: the file format; kohya files state one alpha for all layers.
        rank: truncate to this rank, or to that of each layer; None keeps low-rank layers exact.
        dtype: of the stored factors.
        progress: called as ``progress(done, total, layer)`` before each layer.

    Raises:
        MergeError: if a layer overflows the dtype.
    """
    alpha = common_rank(merged, rank) if form == "kohya" else None
    scratch = Scratch()
    stored = {}
    for done, name in enumerate(merged.layers):
        if progress is not None:
            progress(done, len(merged.layers), name)
        stored[name] = _store(name, merged.layer(name), rank, dtype, alpha, scratch)
    return stored


def relative(error: float, norm: float) -> float:
    """Return a relative error from a squared error and a squared norm; 0 for a norm of 0."""
    return math.sqrt(error / norm) if norm else 0.0


def largest_rank(layer: MergedLayer, rank: Rank) -> int:
    """Return the largest rank at which a layer may be stored."""
    if isinstance(rank, Mapping):
        rank = rank.get(layer.aligned.name)
    held = sum(layer.aligned.all_ranks)
    if layer.fixed is not None:
        held = layer.fixed.rank + (0 if layer.added is None else sum(layer.added.aligned.ranks))
    wanted = held if rank is None else min(rank, held) if layer.is_low_rank else rank
    return min(wanted, *layer.template.matrix_shape)


def common_rank(merged: Merged, rank: Rank) -> int:
    """Return the most common rank of the stored matrices, which is the alpha of a kohya file."""
    matrices = [layer for layer in merged.layers.values() if layer.template.layout != "vector"]
    ranks = Counter(largest_rank(layer, rank) for layer in matrices)
    return ranks.most_common(1)[0][0] if ranks else 1


def _store(
    name: str,
    layer: MergedLayer,
    rank: Rank,
    dtype: torch.dtype,
    alpha: float | None,
    scratch: Scratch,
) -> StoredLayer:
    """Truncate a layer where it is too large, and round it; its scale is alpha / rank, or 1 without alpha."""
    if layer.template.layout == "vector":
        return _store_vector(name, layer, dtype)
    exact = layer.factors(even=False) or layer.matrix(scratch=scratch)
    limit, kept = largest_rank(layer, rank), 1.0
    untruncated = isinstance(exact, tuple) and exact[1].shape[0] <= limit
    if isinstance(exact, tuple) and untruncated:
        up, down = exact
    else:
        svd = layer.svd(limit, exact, exactly=isinstance(rank, Mapping))
        (up, down), kept = svd.balanced(), svd.energy_kept
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    up, down, error, norm = rounded(up if scale == 1 else up / scale, down, dtype)
    template = layer.template
    stored = LowRank(up, down, scale, template.layout, template.kernel, padded_to=layer.padded_to)
    refuse_what_overflows(name, stored, dtype)
    if untruncated:
        error, norm = error * scale**2, norm * scale**2
    else:
        error, norm = truncation_error(exact, stored)
    return StoredLayer(stored, layer.energy_kept * kept, error, norm, layer.energy_kept)


def _store_vector(name: str, layer: MergedLayer, dtype: torch.dtype) -> StoredLayer:
    """Round a bias or the weight of a norm, which has no factors."""
    exact = layer.matrix().cpu()
    stored = LowRank(exact.to(dtype), torch.ones(1, 1, dtype=dtype), 1.0, "vector")
    refuse_what_overflows(name, stored, dtype)
    difference = stored.up.to(torch.float64) - exact
    error, norm = total(difference.square()), total(exact.to(torch.float64).square())
    return StoredLayer(stored, 1.0, error, norm)


def refuse_what_overflows(name: str, stored: LowRank, dtype: torch.dtype) -> None:
    """Refuse factors that a dtype cannot hold, with a way out.

    Raises:
        MergeError: naming the layer.
    """
    if not (is_finite(stored.up) and is_finite(stored.down)):
        way_out = (
            "its entries are too large for any dtype, so lower the weights or the scale"
            if dtype == torch.float32
            else "save it with dtype=torch.float32"
        )
        raise MergeError(f"{name} does not fit into {dtype}; {way_out}")
