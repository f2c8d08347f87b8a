"""Recognising a LoRA by its deltas, whatever its file is called and however it is factored."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..lora import Lora, LowRank
from ..methods.masks import hash_words, mask_key
from ..steady import one_thread

DIRECTIONS = 1024
_MAX_LAYERS = 32
_MAX_ROWS = 256
_TIED = 1e-6  # components closer than this differ by rounding only

Vector = NDArray[Any]  # float64
_Places = NDArray[Any]  # int64
_Sorted = tuple[_Places, Vector, _Places, _Places]


def fingerprint(lora: Lora) -> int:
    """Return which of 1024 fixed random directions the deltas of a LoRA lie closest to, up to their sign.

    It seeds the random masks. Renaming a file, rewriting it at another rank, alpha or scale, or moving it
    within the list leaves it unchanged. Rounding to half precision changes it only where two directions are
    about equally close: for about 1 of 1,000 LoRAs in float16, 5 of 1,000 in bfloat16. Unrelated LoRAs share
    it once in 1024 pairs, and LoRAs that are almost alike nearly always; ``align`` then numbers them.
    """
    return nearest(sketch(lora))


def nearest(components: Vector) -> int:
    """Return the place of the component with the largest magnitude, the first of several."""
    magnitudes = np.abs(components)
    return int(np.argmax(magnitudes >= (1 - _TIED) * magnitudes.max()))


@np.errstate(over="ignore", invalid="ignore")  # factors that overflow are refused where the merge uses them
def sketch(lora: Lora) -> Vector:
    """Return the components of the deltas of one LoRA along 1024 directions (CountSketch; Charikar, 2002).

    Each entry is added to one of 1024 sums or taken from it; its row, its column and its layer say which and
    how. A Hadamard transform then gives every direction an equal part of every sum. Computed from up to 32
    layers and up to 256 rows of each, in float64 on the CPU, from the factors alone where a layer is low
    rank.
    """
    lora = lora.origin or lora
    columns = cache(_columns)  # many layers have the same sizes; forgotten when this call returns
    names = sorted(lora.layers)
    step = -(-len(names) // _MAX_LAYERS) or 1
    components = np.zeros(DIRECTIONS)
    for name in names[::step]:
        layer = lora.layers[name]
        rows = torch.linspace(0, layer.matrix_shape[0] - 1, min(layer.matrix_shape[0], _MAX_ROWS)).long()
        if isinstance(layer, LowRank):
            up = layer.up.detach()[rows.to(layer.device)].to("cpu", torch.float64) * layer.scale
            components += _placed(name, _gathered(layer.down, columns), up)
        else:
            chosen = layer.rows(None)(rows.to(layer.device))
            components += _placed(name, _gathered(chosen, columns))
    for name in sorted(lora.base_dependent):  # what these add is known only with the base model
        for tensor in lora.base_dependent[name].tensors:
            matrix = tensor.reshape(len(tensor) if tensor.ndim else 1, -1) if tensor.numel() else tensor[:0]
            for first in range(0, len(matrix), _MAX_ROWS):  # all of them: each has 1024 sums, in float64
                some = _gathered(matrix[first : first + _MAX_ROWS], columns)
                components += _placed(name, some, first=first)
    return _mixed(components)


def _mixed(sums: Vector) -> Vector:
    """The Walsh-Hadamard transform of the sums, with signs drawn for them; norms stay."""
    mixed = sums * _drawn("sums", DIRECTIONS)[1]
    width = 1
    while width < DIRECTIONS:
        pairs = mixed.reshape(-1, 2, width)
        mixed = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(-1)
        width *= 2
    return mixed / math.sqrt(DIRECTIONS)


def _columns(count: int) -> _Sorted:
    """Columns sorted by where they are added, with their signs; those places, and where each begins."""
    places, signs = _drawn("columns", count)
    order = np.argsort(places, kind="stable")
    used, starts = np.unique(places[order], return_index=True)
    return order, signs[order], used, starts


def _gathered(matrix: Tensor, columns: Callable[[int], _Sorted]) -> Tensor:
    """``(1024, rows)``: for each row of a matrix ``(rows, columns)``, the sums of columns."""
    gathered = np.zeros((DIRECTIONS, matrix.shape[0]))
    if matrix.numel():
        order, signs, used, starts = columns(matrix.shape[1])
        turned = matrix.detach().to("cpu", torch.float64).numpy().T
        gathered[used] = np.add.reduceat(turned[order] * signs[:, None], starts, axis=0)
    return torch.from_numpy(gathered)


@one_thread()
def _placed(name: str, gathered: Tensor, up: Tensor | None = None, first: int = 0) -> Vector:
    """The components of one layer: what was gathered of each row, moved on by a number of places of its own.

    With ``up (rows, r)``, the rows are those of ``up @ gathered.T``; ``first`` is the number of the first.
    """
    rows = (gathered if up is None else gathered @ up.T).numpy()  # (1024, rows)
    shifts, signs = (drawn[first:] for drawn in _drawn("rows", first + rows.shape[1]))
    (own,), (sign,) = _drawn(name, 1)
    places = (np.arange(DIRECTIONS)[:, None] + shifts + own) % DIRECTIONS
    sums: Vector = np.bincount(places.ravel(), (rows * (signs * sign)).ravel(), DIRECTIONS)
    return sums


def _drawn(stream: str, count: int) -> tuple[_Places, Vector]:
    """Places among the directions, and signs; always the same for the same stream and count."""
    words: _Places = hash_words(mask_key(0, stream, "sketch"), count).numpy()
    return words % DIRECTIONS, 1.0 - 2.0 * (words // DIRECTIONS % 2)
