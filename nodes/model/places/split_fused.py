"""Layers on a fused weight of which a ComfyUI model keeps the parts: ``to_qkv`` for its wq, wk and wv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ....merge_ops.adapters import take_rows
from ....merge_ops.lora import BaseDependent, Layer, Lora
from ....merge_ops.names.fused import parts_of
from ..target import Shapes, Target
from .key_maps import KeyMaps

# name of a fused layer -> its parts from the top, each by its name with the weight of the model
Parts = dict[str, dict[str, Target]]
Places = dict[str, list[Target]]  # layer name -> the weight that it changes, or its parts from the top


def find_places(lora: Lora, maps: KeyMaps) -> Places:
    """Find the weights of all that a LoRA holds; base-dependent adapters also on parts of a fused weight."""
    held = {**lora.layers, **lora.whole_weights, **lora.base_dependent}
    places = {name: [target] for name, target in maps.find_targets(held, lora.name).items()}
    for name, parts in find_parts(lora.base_dependent, maps, lora.name).items():
        places[name] = list(parts.values())
    return places


def shape_of(targets: list[Target], shapes: Shapes) -> tuple[int, ...]:
    """Return the shape of the rows of several targets together."""
    rows, *rest = zip(*(target.shape(shapes) for target in targets), strict=True)
    return (sum(rows), *(sizes[0] for sizes in rest))


def find_parts(held: Mapping[str, Layer | BaseDependent], maps: KeyMaps, lora_name: str) -> Parts:
    """Find the fused layers that the model lacks and of which it has every part."""
    fused = {name: choices for name in held if (choices := parts_of(name))}
    known = maps.find_targets({name: held[name] for name in fused}, lora_name) if fused else {}
    parts: Parts = {}
    for name in fused.keys() - known.keys():
        for words in fused[name]:
            targets = maps.find_targets(dict.fromkeys(words, held[name]), lora_name)
            if len(targets) == len(words):
                parts[name] = {word: targets[word] for word in words}
                break
    return parts


def split_fused(lora: Lora, maps: KeyMaps) -> Lora:
    """Cut such layers into the rows of the parts, which is exact; others and misfits stay as they are."""
    layers = dict(lora.layers)
    for name, parts in find_parts(lora.layers, maps, lora.name).items():
        rows = [target.shape(maps.shapes)[0] for target in parts.values()]
        if sum(rows) != layers[name].matrix_shape[0] or not parts.keys().isdisjoint(layers):
            continue
        layer, start = layers.pop(name), 0
        for part, length in zip(parts, rows, strict=True):
            layers[part] = take_rows(layer, slice(start, start + length), part)
            start += length
    if layers.keys() == lora.layers.keys():
        return lora
    return replace(lora, layers=layers, origin=lora.origin or lora)
