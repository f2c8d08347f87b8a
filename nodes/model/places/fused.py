"""Fused weights: one LoRA may change all of a weight, another only slices of it (q, k and v of a qkv)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise

import torch

from ....merge_ops.adapters import join_rows, take_rows
from ....merge_ops.names.spelling import canonical_name
from ..target import LoraTargets, Shapes, Target

Rows = tuple[int, int]  # the first row, and the row after the last
# key of a weight -> the rows, ComfyUI's name and the target of each of its smallest slices
Slices = dict[str, list[tuple[Rows, str, Target]]]


def find_smallest_slices(
    loras: list[LoraTargets], key_map: dict[str, Target], shapes: Shapes
) -> tuple[Slices, list[str]]:
    """Find the weights that LoRAs change in pieces of different sizes, and the smallest slices of each.

    The second result names such weights whose slices in ComfyUI's map do not cover all rows side by side.
    """
    used: dict[str, set[Rows]] = {}
    overlapping: set[str] = set()  # within one LoRA: these are added up unchanged, as ComfyUI does
    for one in loras:
        own = _rows_by_key(one.layers.values(), shapes)
        overlapping |= {key for key, spans in own.items() if _overlap(spans)}
        for key, spans in own.items():
            used[key] = used.get(key, set()) | spans
    mixed = {key for key, spans in used.items() if _overlap(spans)} - overlapping
    known: dict[str, dict[Rows, tuple[str, Target]]] = {key: {} for key in mixed}
    for spelling, target in key_map.items():
        if target.key in mixed and not target.is_whole and (rows := target.rows(shapes)) is not None:
            known[target.key].setdefault(rows, (spelling, target))
    slices: Slices = {}
    for key in mixed:
        tiles = _tile(known[key], shapes[key][0])
        edges = {0, *(end for _, end in tiles)}
        if tiles and all(edges.issuperset(span) for span in used[key]):
            slices[key] = [(tile, *known[key][tile]) for tile in tiles]
    return slices, sorted(mixed - slices.keys())


def cut_into_slices(one: LoraTargets, slices: Slices, shapes: Shapes) -> LoraTargets:
    """Cut the layers on fused weights into the smallest slices, which is exact."""
    layers, targets = dict(one.lora.layers), {}
    for name, target in one.layers.items():
        span = target.rows(shapes)
        pieces = [
            (start - span[0], end - span[0], spelling, part)
            for (start, end), spelling, part in slices.get(target.key, ())
            if span is not None and span[0] <= start < span[1]
        ]
        if len(pieces) < 2:
            targets[name] = target
            continue
        layer = layers.pop(name)
        for start, end, spelling, part in pieces:
            piece_name = canonical_name(spelling)
            layers[piece_name] = take_rows(layer, slice(start, end), spelling)
            targets[piece_name] = part
    return replace(one, lora=replace(one.lora, layers=layers), layers=targets)


def restore_row_order(
    one: LoraTargets, known: Collection[Target], whole: Collection[str], shapes: Shapes
) -> LoraTargets:
    """Put rows that a function of the key map reorders into the order of the weight itself.

    Done for the weights that another LoRA changes without such a function (``whole``), and for targets that
    ComfyUI's own map lacks (``known`` has those of the map). The functions only move rows, so this is exact.
    """
    layers, targets = dict(one.lora.layers), dict(one.layers)
    for name, target in one.layers.items():
        if target.function is None or (target in known and target.key not in whole):
            continue
        order = target.function(torch.arange(shapes[target.key][0])[:, None])[:, 0]
        layers[name] = take_rows(layers[name], order, layers[name].key)
        targets[name] = Target(target.key)
    return replace(one, lora=replace(one.lora, layers=layers), layers=targets)


def join_slices(one: LoraTargets, keys: Collection[str], shapes: Shapes) -> LoraTargets:
    """Join the slices of the weights ``keys`` into one layer on each whole weight, which is exact."""
    layers, targets = dict(one.lora.layers), dict(one.layers)
    pieces: dict[str, list[tuple[str, Rows]]] = {}
    for name, target in one.layers.items():
        rows = target.rows(shapes)
        if target.key in keys and not target.is_whole and rows is not None:
            pieces.setdefault(target.key, []).append((name, rows))
    for key, parts in pieces.items():
        first, spans = parts[0][0], [rows for _, rows in parts]
        layers[first] = join_rows([layers.pop(name) for name, _ in parts], spans, shapes[key][0])
        for name, _ in parts:
            del targets[name]
        targets[first] = Target(key)
    return replace(one, lora=replace(one.lora, layers=layers), layers=targets)


def _rows_by_key(targets: Collection[Target], shapes: Shapes) -> dict[str, set[Rows]]:
    found: dict[str, set[Rows]] = {}
    for target in targets:
        if (rows := target.rows(shapes)) is not None:
            found.setdefault(target.key, set()).add(rows)
    return found


def _overlap(spans: set[Rows]) -> bool:
    ordered = sorted(spans)
    return any(a[1] > b[0] for a, b in pairwise(ordered))


def _tile(spans: Collection[Rows], rows: int) -> list[Rows]:
    """Choose the shortest spans that cover all rows side by side; ``[]`` if none do."""
    tiles: list[Rows] = []
    while not tiles or tiles[-1][1] < rows:
        start = tiles[-1][1] if tiles else 0
        after = [span for span in spans if span[0] == start < span[1] <= rows]
        if not after:
            return []
        tiles.append(min(after))
    return tiles
