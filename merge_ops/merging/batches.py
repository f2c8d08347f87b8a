"""Layers of one shape merged together, where a call costs more than the work on a small layer.

Only what is made of factors alone is batched: merges in factor space (on the CPU, as many as fit in the
cache), methods on cores, where only the ranks must be alike, and on devices other than the CPU truncated
sums. Full deltas keep a device busy one at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch

from .align import AlignedLayer
from .cores import Moments, solve_cores
from .merged_layer import MergedLayer
from .request import Settings
from .spaces import concatenate, merge_factors
from .svd import svds_of_products

_ENTRIES = 1 << 24  # of all factors of a batch
_ENTRIES_ON_CPU = 1 << 18
_ENTRIES_OF_CORES = 1 << 16
ADDED = "not in the recording, so the LoRAs are added"


def group_into_batches(
    aligned: list[AlignedLayer], settings: Settings, device: torch.device | None
) -> Iterator[list[AlignedLayer]]:
    """Yield every layer once, alone or together with others of its shape."""
    if settings.method.kind == "core":
        yield from _group_by_rank(aligned)
        return
    where = device or aligned[0].parts[0].device if aligned else torch.device("cpu")
    in_factors = settings.space == "factors" and settings.rank is None
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


def _group_by_rank(aligned: list[AlignedLayer]) -> Iterator[list[AlignedLayer]]:
    groups: dict[Hashable, list[AlignedLayer]] = {}
    for layer in aligned:
        alike = (layer.weights, layer.indices, layer.ranks)
        groups.setdefault(alike if layer.is_low_rank else layer.name, []).append(layer)
    for group in groups.values():
        size = max(1, _ENTRIES_OF_CORES // sum(group[0].ranks) ** 2)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def merge_cores(
    group: list[AlignedLayer], settings: Settings, device: torch.device | None, moments: Moments | None
) -> list[MergedLayer]:
    """Merge layers of one group with a method on cores, and with the moments of a recording if it needs one.

    A core is kept if it is small, or could not be made again without the recording.
    """
    recorded = settings.method.needs_recording
    if not recorded and not group[0].is_low_rank:
        return [MergedLayer(layer, settings) for layer in group]
    made: dict[str, MergedLayer] = {}
    for known in (True, False) if recorded else (True,):
        chosen = [la for la in group if not recorded or ((la.name in (moments or {})) is known)]
        cores = solve_cores(chosen, settings, device, moments) if chosen else []
        note = "" if known else ADDED
        made |= {
            layer.name: MergedLayer(layer, settings, core=core, note=note)
            for layer, core in zip(chosen, cores, strict=True)
        }
    return [made[layer.name] for layer in group]


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
