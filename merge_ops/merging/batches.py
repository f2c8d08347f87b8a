"""Layers of one shape merged together, where a call costs more than the work on a small layer.

Only what is made of factors alone is batched: merges in factor space, on the CPU as much as fits in the
cache; and elsewhere truncated sums. Full deltas keep a device busy one by one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch

from .merged import MergedLayer
from .spaces import AlignedLayer, Settings, concatenated, merge_factors
from .svd import svds_of_products

_ENTRIES = 1 << 24  # of all factors of a batch
_ENTRIES_ON_CPU = 1 << 18


def batches(
    stacks: list[AlignedLayer], settings: Settings, device: torch.device | None
) -> Iterator[list[AlignedLayer]]:
    """Every layer once, alone or with others of its shape."""
    where = device or stacks[0].parts[0].device if stacks else torch.device("cpu")
    in_factors = (
        settings.space == "factors" and settings.rank is None and "generator" not in settings.method.supplied
    )
    truncated_sum = settings.space == "delta" and settings.method.linear and settings.rank is not None
    if not in_factors and (where.type == "cpu" or not truncated_sum):
        yield from ([stack] for stack in stacks)
        return
    groups: dict[Hashable, list[AlignedLayer]] = {}
    for stack in stacks:
        alike = (stack.weights, *((p.matrix_shape, p.rank, p.scale) for p in stack.parts))
        by_factors = stack.is_low_rank and stack.parts[0].layout != "vector"
        groups.setdefault(alike if by_factors else stack.name, []).append(stack)
    for group in groups.values():
        (rows, columns), inner = group[0].parts[0].matrix_shape, sum(group[0].ranks)
        entries = _ENTRIES_ON_CPU if where.type == "cpu" else _ENTRIES
        size = max(1, entries // ((rows + columns) * inner))
        yield from (group[i : i + size] for i in range(0, len(group), size))


def merge_batch(
    group: list[AlignedLayer], settings: Settings, device: torch.device | None, dtype: torch.dtype
) -> list[MergedLayer]:
    """Merge layers that ``batches`` put together."""
    if settings.space == "factors":
        ups, downs = merge_factors(group, settings, device)
        return [
            MergedLayer(stack, settings).pinned(up, down, dtype)
            for stack, up, down in zip(group, ups.unbind(), downs.unbind(), strict=True)
        ]
    assert settings.rank is not None
    pairs = [concatenated(stack, settings.scale, device) for stack in group]
    found = svds_of_products(
        torch.stack([u for u, _ in pairs]), torch.stack([d for _, d in pairs]), settings.rank
    )
    return [MergedLayer(stack, settings).kept(svd, dtype) for stack, svd in zip(group, found, strict=True)]
