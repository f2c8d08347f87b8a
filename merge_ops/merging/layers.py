"""Merging the layers of a request: one by one or in batches, on all cores of the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing

import torch

from ..errors import IncompatibleLoraError
from ..lora import LowRank
from ..progress import Progress
from .align import AlignedLayer
from .batches import group_into_batches, merge_batch, merge_cores
from .cores import Moments, factors_of_coordinates
from .merged_layer import MergedLayer
from .request import Settings
from .scratch import Scratch
from .spaces import measure_layer, merge_factors
from .threads import on_all_cores


def merge_layers(
    aligned: list[AlignedLayer], settings: Settings, device: torch.device | None, dtype: torch.dtype,
    progress: Progress | None, scratch: Scratch, moments: Moments | None,
) -> dict[str, MergedLayer]:  # fmt: skip
    """Return every layer merged, in the order in which they are aligned, computed on all cores.

    Raises:
        IncompatibleLoraError: if the space is ``factors`` and a layer has none, or not the same ranks.
    """
    results: dict[str, MergedLayer] = {
        layer.name: _cut(MergedLayer(layer, settings.of_sum()), settings, device, dtype, scratch)
        for layer in aligned
        if layer.is_added
    }
    merged = [layer for layer in aligned if not layer.is_added]
    groups = list(group_into_batches(merged, settings, device))

    def work(group: list[AlignedLayer], scratch: Scratch) -> list[MergedLayer]:
        return _merge_group(group, settings, device, dtype, scratch, moments)

    with closing(_each(work, groups, settings, device, scratch)) as made:
        for group in groups:
            if progress is not None:
                progress(len(results), len(aligned), group[0].name)
            results |= {layer.aligned.name: layer for layer in next(made)}
    if progress is not None:
        progress(len(aligned), len(aligned), "")
    return {layer.name: results[layer.name] for layer in aligned}


def _each(
    work: Callable[[list[AlignedLayer], Scratch], list[MergedLayer]], groups: list[list[AlignedLayer]],
    settings: Settings, device: torch.device | None, scratch: Scratch,
) -> Generator[list[MergedLayer], None, None]:  # fmt: skip
    """What ``work`` makes of each group, in order; on all cores where there is work that they can share."""
    parts = [part for group in groups for layer in group for part in layer.parts]
    lazy = settings.rank is None and settings.space == "delta" and settings.method.linear
    on_cpu = all((device or part.device).type == "cpu" for part in parts)
    if lazy or not on_cpu or any(part.is_checked_when_read for part in parts):  # the base is read in turn
        return (work(group, scratch) for group in groups)
    return on_all_cores(
        work, groups, max((math.prod(part.matrix_shape) for part in parts), default=0), scratch
    )


def _merge_group(
    group: list[AlignedLayer], settings: Settings, device: torch.device | None, dtype: torch.dtype,
    scratch: Scratch, moments: Moments | None,
) -> list[MergedLayer]:  # fmt: skip
    """Merge the layers that ``group_into_batches`` put together."""
    if settings.space == "factors":
        for layer in group:
            _check_factors(layer)
    if settings.method.kind == "core":
        return [
            _cut(layer, settings, device, dtype, scratch)
            for layer in merge_cores(group, settings, device, moments)
        ]
    if len(group) > 1:
        return merge_batch(group, settings, device, dtype)
    return [_merge_layer(group[0], settings, device, dtype, scratch)]


def _merge_layer(
    aligned: AlignedLayer,
    settings: Settings,
    device: torch.device | None,
    dtype: torch.dtype,
    scratch: Scratch,
) -> MergedLayer:
    # a rank is cut from what was computed, not from what its dtype keeps of it
    kept = dtype if settings.rank is None else torch.float32
    if settings.space == "factors" and aligned.parts[0].layout != "vector":
        ups, downs = merge_factors([aligned], settings, device)
        layer = MergedLayer(aligned, settings).pinned(ups[0], downs[0], kept)
    elif settings.method.kind == "coordinates" and aligned.is_low_rank:
        layer = MergedLayer(aligned, settings).pinned(
            *factors_of_coordinates(aligned, settings, device), kept
        )
    else:
        figures = None if settings.method.linear else measure_layer(aligned, settings, device, scratch)
        layer = MergedLayer(aligned, settings, figures)
    return _cut(layer, settings, device, dtype, scratch)


def _cut(
    layer: MergedLayer,
    settings: Settings,
    device: torch.device | None,
    dtype: torch.dtype,
    scratch: Scratch,
) -> MergedLayer:
    return layer if settings.rank is None else layer.truncated(settings.rank, device, dtype, scratch)


def _check_factors(aligned: AlignedLayer) -> None:
    for part in aligned.parts:
        if part.layout == "vector":
            continue  # it has one factor, itself
        if not isinstance(part, LowRank):
            raise IncompatibleLoraError(
                f"{aligned.name} is a {type(part).__name__} adapter, which has no up and down factors; "
                "use space='delta'"
            )
    if len(set(aligned.ranks)) > 1:
        raise IncompatibleLoraError(
            f"{aligned.name}: the ranks differ ({', '.join(map(str, aligned.ranks))}), and space='factors' "
            "needs equal ranks; use space='delta', which takes any"
        )
