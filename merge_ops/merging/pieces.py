"""Bringing LoRAs to the same pieces of a weight, where one has it as a whole and another in parts.

Diffusers and trainers fuse q, k and v on request (``to_qkv``), and transformers 5 keeps the experts of a
layer in one parameter where transformers 4 had a module for each. Cutting and stacking rows is exact.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import replace

from ..adapters import join_rows, take_rows
from ..errors import IncompatibleLoraError
from ..lora import BaseWeights, Layer, Lora, LowRank
from ..names.fused import block_of_stacked, current_router, expert_parts, parts_of
from ..names.parts import flat_name
from .fused_weights import FusedWeights

_ROUTER = ".mlp.gate"  # as it is called in transformers 5


def cut_alike(loras: list[Lora], base: BaseWeights | None = None) -> list[Lora]:
    """Cut fused weights into the parts that another LoRA or the base model has, and stack experts likewise.

    Returns ``loras`` itself where there is nothing to do.

    Raises:
        IncompatibleLoraError: if the rows of a fused weight do not fit those of the parts, or if one LoRA
            changes a weight both as a whole and in parts.
    """
    return _cut_fused(_stack_experts(loras) if len(loras) > 1 else loras, base)


def _cut_fused(loras: list[Lora], base: BaseWeights | None) -> list[Lora]:
    names = [{name: parts for name in lora.layers if (parts := parts_of(name))} for lora in loras]
    if not any(names):
        return loras
    rows = {flat_name(name): la.matrix_shape[0] for lora in loras for name, la in lora.layers.items()}
    if isinstance(base, FusedWeights):
        for name in {name for fused in names for name in fused}:
            rows = {flat_name(part): len(weight) for part, weight in base.parts(name).items()} | rows
    cut = [_cut(lora, fused, rows) for lora, fused in zip(loras, names, strict=True)]
    return loras if all(map(operator.is_, cut, loras)) else cut


def _cut(lora: Lora, fused: Mapping[str, list[tuple[str, ...]]], rows: Mapping[str, int]) -> Lora:
    layers = dict(lora.layers)
    for name, choices in fused.items():
        parts = next((each for each in choices if any(flat_name(part) in rows for part in each)), None)
        if parts is None:
            continue
        layer, start = layers.pop(name), 0
        for place, length in enumerate(_lengths(lora, name, layer, parts, rows)):
            part = parts[place]
            if part in lora.layers:
                raise IncompatibleLoraError(
                    f"{lora.name} changes {part} both by itself and as a part of {name}; keep one of them"
                )
            keys = next((keys for keys in parts_of(layer.key) if len(keys) == len(parts)), parts)
            layers[part] = take_rows(layer, slice(start, start + length), keys[place])
            start += length
    if layers.keys() == lora.layers.keys():
        return lora
    return replace(lora, layers=layers, origin=lora.origin or lora)


def _lengths(
    lora: Lora, name: str, layer: Layer, parts: tuple[str, ...], rows: Mapping[str, int]
) -> list[int]:
    """The rows of each part: as other LoRAs have them, keys and values alike, queries the rest."""
    whole, known = layer.matrix_shape[0], [rows.get(flat_name(part)) for part in parts]
    others = next((length for length in known[-2:] if length), None)
    if len(parts) == 3 and others is None and known[0]:
        others = (whole - known[0]) // 2
    lengths = [others or 0] * 2 if len(parts) == 2 else [whole - 2 * (others or 0), others or 0, others or 0]
    fits = all(length is None or length == own for length, own in zip(known, lengths, strict=True))
    if not fits or min(lengths) < 1 or sum(lengths) != whole:
        shown = ", ".join(f"{part} has {length}" for part, length in zip(parts, known, strict=True) if length)
        raise IncompatibleLoraError(
            f"{lora.name}: {name} has {whole} rows, which are not those of its parts in another LoRA "
            f"({shown}); the LoRAs are for different base models"
        )
    return lengths


def _stack_experts(loras: list[Lora]) -> list[Lora]:
    names = [name for lora in loras for name in lora.layers]
    blocks = {block for name in names if (block := block_of_stacked(name))}
    if not blocks and not any(name.endswith(_ROUTER) for name in names):
        return loras
    stacked = [_stacked(lora, blocks) for lora in loras]
    return loras if all(map(operator.is_, stacked, loras)) else stacked


def _stacked(lora: Lora, blocks: Collection[str]) -> Lora:
    """The LoRA with each expert's gate and up as one matrix, under the names of transformers 5."""
    grouped: dict[str, dict[str, Layer]] = {}
    layers: dict[str, Layer] = {}
    for name, layer in lora.layers.items():
        if blocks and (found := expert_parts(name, blocks)) is not None:
            grouped.setdefault(found[0], {})[found[1]] = layer
        else:
            new = current_router(name)
            layers[new] = layer if new == name else _keyed(layer, new)
    if not grouped and layers.keys() == lora.layers.keys():
        return lora
    for name, parts in grouped.items():
        if name in layers:
            raise IncompatibleLoraError(f"{lora.name} has {name} both in a stack of experts and by itself")
        layers[name] = _keyed(_joined(lora, name, parts), name)
    return replace(lora, layers=layers, origin=lora.origin or lora)


def _joined(lora: Lora, name: str, parts: Mapping[str, Layer]) -> Layer:
    if "down_proj" in parts:
        return parts["down_proj"]
    lengths = {layer.matrix_shape[0] for layer in parts.values()}
    if len(lengths) > 1:
        raise IncompatibleLoraError(f"{lora.name}: gate and up of {name} have different numbers of rows")
    (length,) = lengths
    places = {"gate_proj": (0, length), "up_proj": (length, 2 * length)}
    return join_rows(list(parts.values()), [places[word] for word in parts], 2 * length)


def _keyed(layer: Layer, name: str) -> Layer:
    key = f"base_model.model.{name}" if layer.key.startswith("base_model.model.") else name
    return replace(layer, key=key) if isinstance(layer, LowRank) else layer
