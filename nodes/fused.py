"""Fused weights: one LoRA may change the whole of a weight, another one its slices (q, k and v of a qkv)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..merge_ops.formats.names import canonical_name
from ..merge_ops.kinds import Full, Hadamard
from ..merge_ops.types import Layer, Lora, LowRank

# a key, or (key, (dim, start, length)[, function]) for a slice of a fused weight
Target = str | tuple[Any, ...]
# key of a weight -> ComfyUI's name and the target of each of its slices
Slices = dict[str, list[tuple[str, Target]]]


def slices_to_merge_by(
    found: list[dict[str, Target]], key_map: dict[str, Target], shapes: dict[str, tuple[int, ...]]
) -> tuple[Slices, list[str]]:
    """The weights that some LoRAs change as a whole and others by slices, with all slices of each.

    A weight whose slices in ComfyUI's map do not lie side by side and cover all rows is named in the second
    result.
    """
    targets = [target for layers in found for target in layers.values()]
    whole = {target for target in targets if isinstance(target, str)}
    mixed = whole & {target[0] for target in targets if not isinstance(target, str)}
    if not mixed:
        return {}, []
    names: dict[Target, str] = {}
    for spelling, target in key_map.items():
        if not isinstance(target, str) and target[0] in mixed and len(target) == 2 and target[1][0] == 0:
            names.setdefault(target, spelling)
    slices: Slices = {}
    for key in mixed:
        parts = sorted((t for t in names if t[0] == key), key=lambda target: target[1][1])
        ends = [0, *(start + length for _, (_, start, length) in parts)]
        if [start for _, (_, start, _) in parts] == ends[:-1] and ends[-1] == shapes[key][0]:
            slices[key] = [(names[part], part) for part in parts]
    return slices, sorted(mixed - slices.keys())


def cut(lora: Lora, targets: dict[str, Target], slices: Slices) -> tuple[Lora, dict[str, Target]]:
    """The same LoRA with its layers on whole fused weights cut into slices: exact, rows are independent."""
    layers, cut_targets = dict(lora.layers), {}
    for name, target in targets.items():
        if not isinstance(target, str) or target not in slices:
            cut_targets[name] = target
            continue
        layer = layers.pop(name)
        for spelling, part in slices[target]:
            part_name = canonical_name(spelling)
            layers[part_name] = _rows(layer, *part[1][1:], spelling)
            cut_targets[part_name] = part
    return replace(lora, layers=layers), cut_targets


def _rows(layer: Layer, start: int, length: int, key: str) -> Layer:
    rows = slice(start, start + length)
    if isinstance(layer, LowRank):
        return replace(layer, up=layer.up[rows], key=key)
    if isinstance(layer, Hadamard):
        return replace(layer, up_1=layer.up_1[rows], up_2=layer.up_2[rows], key=key)
    return Full(layer.rows(None)(rows), 1.0, layer.layout, layer.kernel, key)
