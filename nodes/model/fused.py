"""Fused weights: one LoRA may change the whole of a weight, another one its slices (q, k and v of a qkv)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from ...merge_ops.adapters import Full, take_rows
from ...merge_ops.lora import Layer, Lora, LowRank
from ...merge_ops.names.spelling import canonical_name

if TYPE_CHECKING:
    from .key_maps import KeyMaps

# a key, or (key, (dim, start, length)[, function]) for a slice of a fused weight
Target = str | tuple[Any, ...]
# key of a weight -> ComfyUI's name and the target of each of its smallest slices
Slices = dict[str, list[tuple[str, Target]]]


def key_of(target: Target) -> str:
    """The key of the weight that a target is, or is a part of."""
    return target if isinstance(target, str) else str(target[0])


def shape_of(target: Target, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of the weight, or of the slice of it, that a target is."""
    shape = list(shapes[key_of(target)])
    if not isinstance(target, str) and target[1] is not None:
        dim, _, length = target[1]
        shape[dim] = length
    return tuple(shape)


def slices_to_merge_by(
    found: list[dict[str, Target]], key_map: dict[str, Target], shapes: dict[str, tuple[int, ...]]
) -> tuple[Slices, list[str]]:
    """The weights that LoRAs change in pieces of different sizes, with the smallest slices of each.

    A weight whose slices in ComfyUI's map do not lie side by side and cover all rows is named in the second
    result.
    """
    spans: dict[str, set[tuple[int, int]]] = {}
    overlapping = set()  # in one LoRA: it is added up as it is, as ComfyUI does
    for layers in found:
        own: dict[str, set[tuple[int, int]]] = {}
        for target in layers.values():
            if (span := _span(target, shapes)) is not None:
                own.setdefault(key_of(target), set()).add(span)
        for key, used in own.items():
            overlapping |= {key} if _overlap(used) else set()
            spans[key] = spans.get(key, set()) | used
    mixed = {key for key, used in spans.items() if _overlap(used)} - overlapping
    known: dict[str, dict[tuple[int, int], tuple[str, Target]]] = {key: {} for key in mixed}
    for spelling, target in key_map.items():
        if not isinstance(target, str) and target[0] in mixed and (span := _span(target, shapes)) is not None:
            known[target[0]].setdefault(span, (spelling, target))
    slices: Slices = {}
    for key in mixed:
        tiles = _tiles(known[key], shapes[key][0])
        edges = {0, *(end for _, end in tiles)}
        if tiles and all(edges.issuperset(span) for span in spans[key]):
            slices[key] = [known[key][tile] for tile in tiles]
    return slices, sorted(mixed - slices.keys())


def cut(
    lora: Lora, targets: dict[str, Target], slices: Slices, shapes: dict[str, tuple[int, ...]]
) -> tuple[Lora, dict[str, Target]]:
    """The same LoRA with its layers on fused weights cut into the smallest slices: exact."""
    layers, cut_targets = dict(lora.layers), {}
    for name, target in targets.items():
        span = _span(target, shapes)
        parts = [
            (spelling, part)
            for spelling, part in slices.get(key_of(target), ())
            if span is not None and span[0] <= part[1][1] < span[1]
        ]
        if len(parts) < 2 or span is None:
            cut_targets[name] = target
            continue
        layer = layers.pop(name)
        for spelling, part in parts:
            part_name = canonical_name(spelling)
            start = part[1][1] - span[0]
            layers[part_name] = take_rows(layer, slice(start, start + part[1][2]), spelling)
            cut_targets[part_name] = part
    return replace(lora, layers=layers), cut_targets


def in_its_order(
    lora: Lora, targets: dict[str, Target], maps: KeyMaps, whole: Collection[Target]
) -> tuple[Lora, dict[str, Target]]:
    """The same LoRA with rows that a function of the map moves in the order of the weight itself.

    Done where another LoRA changes the weight as it is (``whole``), and where ComfyUI's map has no such
    target; the functions only move rows, so this is exact.
    """
    layers, changed = dict(lora.layers), dict(targets)
    known = set(maps.unet.values())
    for name, target in targets.items():
        if isinstance(target, str) or len(target) < 3 or (target in known and target[0] not in whole):
            continue
        order = target[2](torch.arange(maps.shapes[target[0]][0])[:, None])[:, 0]
        layers[name] = take_rows(layers[name], order, layers[name].key)
        changed[name] = target[0]
    return replace(lora, layers=layers), changed


def join(
    lora: Lora, targets: dict[str, Target], keys: Collection[str], shapes: dict[str, tuple[int, ...]]
) -> tuple[Lora, dict[str, Target]]:
    """The same LoRA with its slices of certain weights as one layer on the whole weight: exact."""
    layers, changed = dict(lora.layers), dict(targets)
    parts: dict[str, list[str]] = {}
    for name, target in targets.items():
        if not isinstance(target, str) and target[0] in keys:
            parts.setdefault(target[0], []).append(name)
    for key, names in parts.items():
        spans = [changed.pop(name)[1][1:] for name in names]
        layers[names[0]] = _joined([layers.pop(name) for name in names], spans, shapes[key])
        changed[names[0]] = key
    return replace(lora, layers=layers), changed


def _span(target: Target, shapes: dict[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """First row and the row behind the last; None for a part that is not some rows as they are."""
    if isinstance(target, str):
        return 0, shapes[target][0] if shapes[target] else 1
    if len(target) > 2 or target[1] is None or target[1][0] != 0:
        return None
    return target[1][1], target[1][1] + target[1][2]


def _overlap(spans: set[tuple[int, int]]) -> bool:
    ordered = sorted(spans)
    return any(a[1] > b[0] for a, b in pairwise(ordered))


def _tiles(spans: Collection[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    """The shortest spans that lie side by side and cover all rows; ``[]`` if none do."""
    tiles: list[tuple[int, int]] = []
    while not tiles or tiles[-1][1] < rows:
        start = tiles[-1][1] if tiles else 0
        after = [span for span in spans if span[0] == start < span[1] <= rows]
        if not after:
            return []
        tiles.append(min(after))
    return tiles


def _joined(layers: list[Layer], spans: list[tuple[int, int]], shape: tuple[int, ...]) -> Layer:
    """One layer on a whole weight from layers on some of its rows; the other rows are zero."""
    first = layers[0]
    if not all(isinstance(layer, LowRank) for layer in layers):
        whole = torch.zeros(shape[0], first.matrix_shape[1])
        for layer, (start, length) in zip(layers, spans, strict=True):
            whole[start : start + length] = layer.matrix(torch.device("cpu"))
        return Full(whole, 1.0, first.layout, first.kernel, first.key)
    pairs = [layer.factors(None) for layer in layers if isinstance(layer, LowRank)]
    up = pairs[0][0].new_zeros(shape[0], sum(layer.rank for layer in layers))
    column = 0
    for (part, _), (start, length) in zip(pairs, spans, strict=True):
        up[start : start + length, column : column + part.shape[1]] = part
        column += part.shape[1]
    return LowRank(up, torch.cat([down for _, down in pairs]), 1.0, first.layout, first.kernel, first.key)
