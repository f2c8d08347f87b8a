"""Where a merge happens: on the true deltas, or on the up and down factors separately.

Everything here works on the matrices of one layer. Deltas are formed a tile of rows at a time, so that a tile
stays in the processor's cache and no more than one full delta exists at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .registry import Method
from .sparsify import MaskGenerator, magnitude_threshold, mask_key
from .types import LowRank

_TILE_ON_CPU = 1 << 16  # entries of one tile of one LoRA: 256 kB, so that a few of them fit in the L2 cache
_TILE_ELSEWHERE = 1 << 22  # launches cost more than memory there


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to merge, with every parameter resolved."""

    method: Method
    params: dict[str, Any]
    space: str
    rank: int | None
    scale: float
    seed: int
    svd_clamp: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LayerStack:
    """One layer of every LoRA that has it. Entry ``i`` of each tuple belongs to the same LoRA."""

    name: str
    parts: tuple[LowRank, ...]
    weights: tuple[float, ...]
    identities: tuple[str, ...]  # what random masks are drawn by

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(part.rank for part in self.parts)

    def factors(self, device: torch.device | None) -> tuple[list[Tensor], list[Tensor]]:
        """Float32 ``up * scale`` and ``down`` of every LoRA on the device."""
        ups = [p.up.to(device=device, dtype=torch.float32) * p.scale for p in self.parts]
        return ups, [p.down.to(device=device, dtype=torch.float32) for p in self.parts]

    def generator(self, seed: int, part: str, first: int = 0) -> MaskGenerator:
        return MaskGenerator([mask_key(seed, self.name, who, part) for who in self.identities], first)


def concatenated(stack: LayerStack, scale: float, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """The exact weighted sum as one low-rank pair: ups side by side, downs stacked (PEFT's ``cat``).

    Each product ``scale * weight * alpha / rank`` is split evenly over both factors.
    """
    split = [_split(scale * w * p.scale) for w, p in zip(stack.weights, stack.parts, strict=True)]
    ups = [
        p.up.to(device=device, dtype=torch.float32) * b for p, (b, _) in zip(stack.parts, split, strict=True)
    ]
    downs = [
        p.down.to(device=device, dtype=torch.float32) * a
        for p, (_, a) in zip(stack.parts, split, strict=True)
    ]
    return torch.cat(ups, dim=1), torch.cat(downs, dim=0)


def merge_factors(stack: LayerStack, recipe: Recipe, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Apply the method to the ups and to the downs separately, as PEFT and LoRAX do; all ranks are equal."""
    split = [_split(w * p.scale) for w, p in zip(stack.weights, stack.parts, strict=True)]
    ups = torch.stack([p.up.to(device=device, dtype=torch.float32) for p in stack.parts])
    downs = torch.stack([p.down.to(device=device, dtype=torch.float32) for p in stack.parts])
    up = _apply(recipe, ups, [b for b, _ in split], stack.generator(recipe.seed, "up"))
    down = _apply(recipe, downs, [a for _, a in split], stack.generator(recipe.seed, "down"))
    on_up, on_down = _split(recipe.scale)
    return up * on_up, down * on_down


def find_thresholds(
    stack: LayerStack, recipe: Recipe, device: torch.device | None
) -> tuple[float, ...] | None:
    """The magnitude below which each LoRA's delta is dropped, if the method drops by magnitude."""
    if "thresholds" not in recipe.method.supplied or recipe.params["density"] >= 1:
        return None
    ups, downs = stack.factors(device)
    return tuple(
        magnitude_threshold(up @ down, recipe.params["density"]) for up, down in zip(ups, downs, strict=True)
    )


def merge_deltas(
    stack: LayerStack, recipe: Recipe, thresholds: tuple[float, ...] | None, device: torch.device | None
) -> Tensor:
    """The merged delta ``(out, in)`` of one layer in float32, made a tile of rows at a time."""
    rows, columns = stack.parts[0].matrix_shape
    where = device or stack.parts[0].up.device
    merged = torch.empty((rows, columns), dtype=torch.float32, device=where)
    limits = None if thresholds is None else torch.tensor(thresholds, device=where).view(-1, 1, 1)
    for start, tile in delta_tiles(stack, where):
        generator = stack.generator(recipe.seed, "delta", first=start * columns)
        merged[start : start + tile.shape[1]] = _apply(recipe, tile, stack.weights, generator, limits)
    return merged if recipe.scale == 1.0 else merged.mul_(recipe.scale)


def delta_tiles(stack: LayerStack, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, deltas (n, rows, in))`` over all rows; the buffer is reused from tile to tile."""
    ups, downs = stack.factors(device)
    rows, columns = stack.parts[0].matrix_shape
    height = max(1, min(rows, (_TILE_ON_CPU if device.type == "cpu" else _TILE_ELSEWHERE) // columns))
    buffer = torch.empty((len(ups), height, columns), dtype=torch.float32, device=device)
    for start in range(0, rows, height):
        tile = buffer[:, : min(height, rows - start)]
        for delta, up, down in zip(tile, ups, downs, strict=True):
            torch.mm(up[start : start + height], down, out=delta)
        yield start, tile


def _apply(
    recipe: Recipe,
    values: Tensor,
    weights: tuple[float, ...] | list[float],
    generator: MaskGenerator,
    thresholds: Tensor | None = None,
) -> Tensor:
    offered = {"thresholds": thresholds, "generator": generator}
    supplied = {name: offered[name] for name in recipe.method.supplied}
    result = recipe.method.fn(
        values, torch.tensor(weights, device=values.device), **recipe.params, **supplied
    )
    assert isinstance(result, Tensor)
    return result


def _split(value: float) -> tuple[float, float]:
    """A scalar as a product of two factors of equal size; the second one carries the sign."""
    root = math.sqrt(abs(value))
    return root, math.copysign(root, value)
