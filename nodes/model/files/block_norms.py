"""The blocks of a LoRA file: which there are, how much of its change is in each, what a text sets them to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ....merge_ops.analysis.facts import squared_norm
from ....merge_ops.blocks.sliders import Place, parents_of, places_of, sorts_of, values_of
from ....merge_ops.errors import ParameterError
from ....merge_ops.lora import Lora, LowRank
from .lora_files import FileState, read_file_state, read_lora

_KEPT = 64  # files
_LARGEST = 1 << 22  # entries of a delta that is not low rank and is measured: forming it takes a moment
_known: dict[FileState, _Blocks] = {}  # least recently used first


@dataclass(frozen=True, slots=True)
class _Blocks:
    places: list[Place]
    sorts: dict[str, list[str]]
    squares: dict[str, float]  # by layer, where it is known


def describe_blocks(name: str, text: str) -> dict[str, Any]:
    """Return the blocks of a file by its name in the loras folders, and what a text means for them.

    Raises:
        MergeError: if there is no such file, or it cannot be read.
    """
    blocks = _blocks_of(name)
    answer: dict[str, Any] = {
        "name": name,
        "blocks": [
            {
                "name": place.selector, "group": place.group, "number": place.number,
                "layers": len(place.layers), "norm": _norm(blocks, place.layers),
            }
            for place in blocks.places
        ],
        "groups": parents_of(blocks.places),
        "sorts": [
            {"name": sort, "layers": len(layers), "norm": _norm(blocks, layers)}
            for sort, layers in blocks.sorts.items()
        ],
    }  # fmt: skip
    try:
        values, problem = values_of(text, blocks.places), None
    except ParameterError as error:
        values, problem = values_of("", blocks.places), str(error)
    set_to = values.places | {sort: values.sorts[sort] for sort in blocks.sorts}
    return answer | {"values": set_to, "exact": values.exact and problem is None, "problem": problem}


def _blocks_of(name: str) -> _Blocks:
    state = read_file_state(name)
    blocks = _known.pop(state, None)
    if blocks is None:
        blocks = _measure(read_lora(name))
    _known[state] = blocks
    while len(_known) > _KEPT:
        _known.pop(next(iter(_known)), None)
    return blocks


@torch.no_grad()
def _measure(lora: Lora) -> _Blocks:
    names = [*lora.layers, *lora.base_dependent]
    squares = {
        name: max(squared_norm(layer), 0.0)
        for name, layer in lora.layers.items()
        if isinstance(layer, LowRank) or math.prod(layer.matrix_shape) <= _LARGEST
    }
    return _Blocks(places_of(names), sorts_of(names), squares)


def _norm(blocks: _Blocks, layers: list[str] | tuple[str, ...]) -> float | None:
    known = [blocks.squares[layer] for layer in layers if layer in blocks.squares]
    if len(known) < len(layers):
        return None
    total = math.sqrt(sum(known))
    return total if math.isfinite(total) else None
