"""Layers of one shape merged together, where a call costs more than the work on a small layer.

Only what is made of factors alone is batched: merges in factor space (on the CPU, as many as fit in the
cache), and on other devices truncated sums. Full deltas keep a device busy one at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch

from .align import AlignedLayer
from .merged_layer import MergedLayer
from .request import Settings
from .spaces import concatenate, merge_factors
from .svd import svds_of_products

_ENTRIES = 1 << 24  # of all factors of a batch
_ENTRIES_ON_CPU = 1 << 18


def group_into_batches(
    aligned: list[AlignedLayer], settings: Settings, device: torch.device | None
) -> Iterator[list[AlignedLayer]]:
    """Yield every layer once, alone or together with others of its shape."""
    where = device or aligned[0].parts[0].device if aligned else torch.device("cpu")
    in_factors = (
        settings.space == "factors" and settings.rank is None and "generator" not in settings.method.supplied
    )
    truncated_sum = settings.space == "delta" and settings.method.linear and settings.rank is not None
    if not in_factors and (where.type == "cpu" or not truncated_sum):
        yield from ([layer] for layer in aligned)
        return
    groups: dict[Hashable, list[AlignedLayer]] = {}
    for layer in aligned:
        alike = (layer.weights, *((p.matrix_shape, p.rank, p.scale) for p in layer.parts))
        by_factors = layer.is_low_rank and layer.parts[0].layout != "vector"
        groups.setdefault(alike if by_factors else layer.name, []).append(layer)
    for group in groups.values():
        (rows, columns), inner = group[0].parts[0].matrix_shape, sum(group[0].ranks)
        entries = _ENTRIES_ON_CPU if where.type == "cpu" else _ENTRIES
        size = max(1, entries // ((rows + columns) * inner))
        yield from (group[i : i + size] for i in range(0, len(group), size))


def merge_batch(
    group: list[AlignedLayer], settings: Settings, device: torch.device | None, dtype: torch.dtype
) -> list[MergedLayer]:
    """Merge a group of layers that ``group_into_batches`` put together."""
    if settings.space == "factors":
        ups, downs = merge_factors(group, settings, device)
        return [
            MergedLayer(layer, settings).pinned(up, down, dtype)
            for layer, up, down in zip(group, ups.unbind(), downs.unbind(), strict=True)
        ]
    assert settings.rank is not None
    pairs = [concatenate(layer, settings.scale, device) for layer in group]
    svds = svds_of_products(
        torch.stack([up for up, _ in pairs]), torch.stack([down for _, down in pairs]), settings.rank
    )
    return [MergedLayer(layer, settings).kept(svd, dtype) for layer, svd in zip(group, svds, strict=True)]
