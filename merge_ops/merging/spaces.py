"""Where a merge happens: on the true deltas, or on the up and down factors separately.

Everything here works on the matrices of one layer. Deltas are formed a tile of rows at a time, so that a tile
stays in the processor's cache and no more than one full delta exists at once. Weights are given to methods on
the CPU, where reading them is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..lora import Layer, LowRank
from ..methods.registry import Method
from ..methods.sparsify import MaskGenerator, mask_key
from ..methods.thresholds import magnitude_thresholds, product_thresholds
from .scratch import Scratch

# Entries of one tile of one LoRA. On the CPU the buffers of a tile should stay in the cache, and the calls
# should still be few; elsewhere launches cost more than memory.
_TILE_ON_CPU = 1 << 18
_TILE_ELSEWHERE = 1 << 22
_ROWS = 64

_sparing: ContextVar[bool] = ContextVar("sparing", default=False)

# found thresholds by layer of a LoRA, forgotten with it: another strength does not look for them again
_thresholds: WeakKeyDictionary[Layer, dict[tuple[float, ...], float]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Settings:
    """How to merge, with every parameter resolved."""

    method: Method
    params: dict[str, Any]
    space: str
    rank: int | None
    scale: float
    seed: int
    svd_clamp: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AlignedLayer:
    """One layer of every LoRA that has it. Entry ``i`` of each tuple belongs to the same LoRA."""

    name: str
    parts: tuple[Layer, ...]
    weights: tuple[float, ...]
    identities: tuple[str, ...]  # what random masks are drawn by

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(part.rank for part in self.parts)

    @property
    def is_low_rank(self) -> bool:
        return all(isinstance(part, LowRank) for part in self.parts)

    def low_rank(self) -> tuple[list[LowRank], list[float]]:
        """The parts that are low rank, with their weights."""
        pairs = zip(self.parts, self.weights, strict=True)
        chosen = [(part, weight) for part, weight in pairs if isinstance(part, LowRank)]
        return [part for part, _ in chosen], [weight for _, weight in chosen]

    def generator(self, seed: int, part: str, first: int = 0) -> MaskGenerator:
        return MaskGenerator([mask_key(seed, self.name, who, part) for who in self.identities], first)


@contextmanager
def sparing_memory() -> Iterator[None]:
    """Meanwhile merge in small tiles on every device, and find thresholds on the CPU."""
    token = _sparing.set(True)
    try:
        yield
    finally:
        _sparing.reset(token)


def concatenated(
    stack: AlignedLayer, scale: float, device: torch.device | None, even: bool = True
) -> tuple[Tensor, Tensor]:
    """The exact weighted sum of the low-rank parts as one pair: ups side by side, downs stacked (``cat``).

    Each product ``scale * weight * alpha / rank`` is split evenly over both factors, or all on ``up``.
    """
    where = device or stack.parts[0].device
    parts, weights = stack.low_rank()
    (rows, columns), inner = stack.parts[0].matrix_shape, sum(part.rank for part in parts)
    up, down = torch.empty((rows, inner), device=where), torch.empty((inner, columns), device=where)
    start = 0
    for part, weight in zip(parts, weights, strict=True):
        factor = scale * weight * part.scale
        on_up, on_down = _split(factor) if even else (factor, 1.0)
        end = start + part.rank
        up[:, start:end].copy_(part.up).mul_(on_up)
        down[start:end].copy_(part.down)
        if on_down != 1:
            down[start:end].mul_(on_down)
        start = end
    return up, down


def merge_factors(
    group: list[AlignedLayer], settings: Settings, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Apply the method to the ups and to the downs separately, as PEFT and LoRAX do; all ranks are equal.

    ``group`` holds layers of one shape with the same weights and scales: ``(layers, out, r)`` and ``(layers,
    r, in)`` are returned.
    """
    parts = [stack.low_rank()[0] for stack in group]
    split = [_split(w * p.scale) for w, p in zip(group[0].weights, parts[0], strict=True)]
    ups = _stacked([[layer[i].up for layer in parts] for i in range(len(split))], device)
    downs = _stacked([[layer[i].down for layer in parts] for i in range(len(split))], device)
    up = _apply(settings, group[0], ups, [b for b, _ in split], "up")
    down = _apply(settings, group[0], downs, [a for _, a in split], "down")
    if settings.scale == 1.0:
        return up, down
    on_up, on_down = _split(settings.scale)
    return up * on_up, down * on_down


def find_thresholds(
    stack: AlignedLayer, settings: Settings, device: torch.device | None
) -> tuple[float, ...] | None:
    """The magnitude below which each LoRA's delta is dropped, if the method drops by magnitude.

    It does not depend on the weights, so it is found once for each LoRA and density.
    """
    density = settings.params.get("density", 1.0)
    if "thresholds" not in settings.method.supplied or density >= 1:
        return None
    known = [_thresholds.setdefault(part, {}) for part in stack.parts]
    keys = [(density, *_versions(part)) for part in stack.parts]
    device = torch.device("cpu") if _sparing.get() else device
    height = tile_height(stack.parts[0].matrix_shape[1], device or stack.parts[0].device)
    new = [i for i, key in enumerate(keys) if key not in known[i]]
    low = [i for i in new if isinstance(stack.parts[i], LowRank)]
    pairs = [part.factors(device) for i in low if isinstance(part := stack.parts[i], LowRank)]
    for i, threshold in zip(low, product_thresholds(pairs, density, height), strict=True):
        known[i][keys[i]] = threshold
    others = [i for i in new if i not in low]  # formed as a whole
    matrices = (stack.parts[i].matrix(device) for i in others)
    for i, threshold in zip(others, magnitude_thresholds(matrices, density), strict=True):
        known[i][keys[i]] = threshold
    return tuple(those[key] for those, key in zip(known, keys, strict=True))


def merge_deltas(
    stack: AlignedLayer,
    settings: Settings,
    thresholds: tuple[float, ...] | None,
    device: torch.device | None,
    scratch: Scratch | None = None,
) -> Tensor:
    """The merged delta ``(out, in)`` of one layer in float32."""
    where = device or stack.parts[0].device
    merged = (scratch or Scratch()).matrix(*stack.parts[0].matrix_shape, where)
    for start, tile in merged_tiles(stack, settings, thresholds, where):
        torch.mul(tile, settings.scale, out=merged[start : start + tile.shape[0]])
    return merged


def merged_tiles(
    stack: AlignedLayer, settings: Settings, thresholds: tuple[float, ...] | None, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, merged delta (rows, in))`` over all rows, without ``settings.scale``."""
    limits = None if thresholds is None else torch.tensor(thresholds).view(-1, 1, 1)
    columns = stack.parts[0].matrix_shape[1]
    for start, tile in _delta_tiles(stack, device):
        yield start, _apply(settings, stack, tile, stack.weights, "delta", start * columns, limits)


def tile_height(columns: int, device: torch.device) -> int:
    """Rows of a tile, a multiple of what matrix products like where there is room for that."""
    sparing = device.type == "cpu" or _sparing.get()
    height = (_TILE_ON_CPU if sparing else _TILE_ELSEWHERE) // columns
    return height // _ROWS * _ROWS or max(1, height)


def _delta_tiles(stack: AlignedLayer, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, deltas (n, rows, in))`` over all rows; the buffer is reused from tile to tile."""
    readers = [part.rows(device) for part in stack.parts]
    rows, columns = stack.parts[0].matrix_shape
    height = min(rows, tile_height(columns, device))
    buffer = torch.empty((len(readers), height, columns), dtype=torch.float32, device=device)
    for start in range(0, rows, height):
        tile = buffer[:, : min(height, rows - start)]
        for delta, read in zip(tile.unbind(), readers, strict=True):
            read(slice(start, start + height), out=delta)
        yield start, tile


def _versions(part: Layer) -> tuple[int, ...]:
    """How often the tensors were written to; torch does not count that for those of inference mode."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in part.tensors)


def _stacked(factors: list[list[Tensor]], device: torch.device | None) -> Tensor:
    """Float32 ``(n, layers, rows, columns)`` on the device, from a list a LoRA of a factor a layer."""
    first = factors[0][0]
    stacked = torch.empty((len(factors), len(factors[0]), *first.shape), device=device or first.device)
    for places, layers in zip(stacked.unbind(), factors, strict=True):
        for place, factor in zip(places.unbind(), layers, strict=True):
            place.copy_(factor)
    return stacked


def _apply(
    settings: Settings,
    stack: AlignedLayer,
    values: Tensor,
    weights: tuple[float, ...] | list[float],
    part: str,
    first: int = 0,
    thresholds: Tensor | None = None,
) -> Tensor:
    supplied: dict[str, Any] = {}
    if "thresholds" in settings.method.supplied:
        supplied["thresholds"] = thresholds
    if "generator" in settings.method.supplied:
        supplied["generator"] = stack.generator(settings.seed, part, first)
    if "overwrite" in settings.method.supplied:
        supplied["overwrite"] = True
    result = settings.method.fn(values, torch.tensor(weights), **settings.params, **supplied)
    assert isinstance(result, Tensor)
    return result


def _split(value: float) -> tuple[float, float]:
    """A scalar as a product of two factors of equal size; the second one carries the sign."""
    root = math.sqrt(abs(value))
    return root, math.copysign(root, value)
