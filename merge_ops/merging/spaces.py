"""Where a merge happens: on the true deltas, or on the up and down factors separately.

Everything here works on the matrices of one layer. Deltas are formed a tile of rows at a time, so that a tile
stays in the processor's cache and no more than one full delta exists at once. Weights are given to methods on
the CPU, where reading them is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..lora import LowRank
from ..methods.thresholds import magnitude_thresholds, product_thresholds, shares_above
from ..room import check_room
from .align import AlignedLayer, masks_of
from .overflow import refuse_infinity
from .request import Settings
from .scratch import Scratch


def concatenate(
    aligned: AlignedLayer, scale: float, device: torch.device | None, even: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the exact weighted sum of the low-rank parts as float32 ``(up (out, R), down (R, in))``.

    ``R`` is the sum of the ranks: the ups stand side by side and the downs are stacked, PEFT's ``cat``. Each
    product ``scale * weight * alpha / rank`` is split evenly over both factors, or is all on ``up``.
    """
    where = device or aligned.parts[0].device
    parts, weights = aligned.low_rank()
    (rows, columns), inner = aligned.parts[0].matrix_shape, sum(part.rank for part in parts)
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

    ``group`` holds layers of one shape with the same weights and scales. Returns ``(layers, out, r)`` and
    ``(layers, r, in)``.
    """
    parts = [layer.low_rank()[0] for layer in group]
    split = [_split(w * p.scale) for w, p in zip(group[0].weights, parts[0], strict=True)]
    ups = _stacked([[layer[i].up for layer in parts] for i in range(len(split))], device)
    downs = _stacked([[layer[i].down for layer in parts] for i in range(len(split))], device)
    up = apply_method(settings, group, ups, [b for b, _ in split], "up")
    down = apply_method(settings, group, downs, [a for _, a in split], "down")
    if settings.scale == 1.0:
        return up, down
    on_up, on_down = _split(settings.scale)
    return up * on_up, down * on_down


def measure_layer(
    aligned: AlignedLayer, settings: Settings, device: torch.device | None, scratch: Scratch | None = None
) -> tuple[float, ...] | None:
    """Return the figures of the whole layer that the method needs before it sees any entries, or None.

    They are the magnitudes at which each LoRA's entries are cut, first the thresholds of all and then the
    ceilings, or whatever the method's ``measure`` returns.
    """
    check_room(f"the delta of {aligned.name}", *aligned.parts[0].matrix_shape)
    scratch = scratch or Scratch()
    method, params = settings.method, settings.params
    if method.measure is not None:
        where = device or aligned.parts[0].device

        def tiles() -> Iterator[Tensor]:
            return (tile for _, tile in _delta_tiles(aligned, where, scratch))

        return method.measure(tiles, torch.tensor(aligned.weights), **params)
    lower, upper = shares_above(params.get("density", 1.0), params.get("outliers", 0.0))
    if lower == 1 and not upper:
        return None
    shares = {"thresholds": lower, "ceilings": upper}
    found = [_find_thresholds(aligned, shares[name], device, scratch) for name in _cuts(settings)]
    return tuple(threshold for each in found for threshold in each) or None


def _cuts(settings: Settings) -> list[str]:
    """The magnitudes at which the method cuts, by name."""
    return [name for name in ("thresholds", "ceilings") if name in settings.method.supplied]


def _find_thresholds(
    aligned: AlignedLayer, density: float, device: torch.device | None, scratch: Scratch
) -> tuple[float, ...]:
    """Return for each LoRA the magnitude that its share ``density`` of the entries reaches.

    A threshold does not depend on the weights: it is found once for each LoRA and density, and kept by the
    layer of the LoRA.
    """
    device = torch.device("cpu") if scratch.sparing else device
    where, (rows, columns) = device or aligned.parts[0].device, aligned.parts[0].matrix_shape
    known = [part.measured for part in aligned.parts]
    keys = [("threshold", density, *part.versions) for part in aligned.parts]
    new = [i for i, key in enumerate(keys) if key not in known[i]]
    low_rank = [i for i in new if isinstance(aligned.parts[i], LowRank)]
    pairs = [part.factors(device) for i in low_rank if isinstance(part := aligned.parts[i], LowRank)]
    height = scratch.tile_height(columns, where)
    room = scratch.room(rows, columns, where) if pairs and where.type == "cpu" else torch.empty(0)
    for i, threshold in zip(low_rank, product_thresholds(pairs, density, height, room), strict=True):
        known[i][keys[i]] = threshold
    others = [i for i in new if i not in low_rank]  # formed as a whole
    matrices = (aligned.parts[i].matrix(device) for i in others)
    for i, threshold in zip(others, magnitude_thresholds(matrices, density), strict=True):
        known[i][keys[i]] = threshold
    return tuple(measured[key] for measured, key in zip(known, keys, strict=True))


def merge_deltas(
    aligned: AlignedLayer,
    settings: Settings,
    figures: tuple[float, ...] | None,
    device: torch.device | None,
    scratch: Scratch | None = None,
) -> Tensor:
    """Return the merged delta ``(out, in)`` of one layer in float32, in the scratch buffer if given."""
    where = device or aligned.parts[0].device
    scratch = scratch or Scratch()
    merged = scratch.matrix(*aligned.parts[0].matrix_shape, where)
    for start, tile in merged_tiles(aligned, settings, figures, where, scratch, merged):
        place = merged[start : start + tile.shape[0]]
        if tile.data_ptr() != place.data_ptr():
            torch.mul(tile, settings.scale, out=place)
        elif settings.scale != 1:
            tile.mul_(settings.scale)
    return merged


def merged_tiles(
    aligned: AlignedLayer,
    settings: Settings,
    figures: tuple[float, ...] | None,
    device: torch.device,
    scratch: Scratch | None = None,
    into: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, merged delta (rows, in))`` over all rows, without ``settings.scale``.

    The tiles are parts of ``into`` ``(out, in)`` if that is given and the method can write there.
    """
    columns = aligned.parts[0].matrix_shape[1]
    of_base = any(part.is_checked_when_read for part in aligned.parts)
    call = _prepared(settings, [aligned], aligned.weights, "delta", figures)
    for start, tile in _delta_tiles(aligned, device, scratch or Scratch()):
        done = call(tile, start * columns, None if into is None else into[start : start + tile.shape[1]])
        if of_base:  # how large these are is known only now; the others were checked before
            refuse_infinity(aligned.name, done, settings.scale)
        yield start, done


def _delta_tiles(
    aligned: AlignedLayer, device: torch.device, scratch: Scratch
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, deltas (n, rows, in))`` over all rows; the buffer is reused from tile to tile."""
    readers = [part.rows(device) for part in aligned.parts]
    rows, columns = aligned.parts[0].matrix_shape
    height = min(rows, scratch.tile_height(columns, device))
    buffer = torch.empty((len(readers), height, columns), dtype=torch.float32, device=device)
    for start in range(0, rows, height):
        tile = buffer[:, : min(height, rows - start)]
        for delta, read in zip(tile.unbind(), readers, strict=True):
            read(slice(start, start + height), out=delta)
        yield start, tile


def _stacked(factors: list[list[Tensor]], device: torch.device | None) -> Tensor:
    """Float32 ``(n, layers, rows, columns)`` on the device, from one factor per LoRA and layer."""
    first = factors[0][0]
    stacked = torch.empty((len(factors), len(factors[0]), *first.shape), device=device or first.device)
    for places, layers in zip(stacked.unbind(), factors, strict=True):
        for place, factor in zip(places.unbind(), layers, strict=True):
            place.copy_(factor)
    return stacked


def apply_method(
    settings: Settings,
    layers: Sequence[AlignedLayer],
    values: Tensor,
    weights: tuple[float, ...] | list[float],
    factor: str,
) -> Tensor:
    """Call an entrywise method on the ``values (n, layers, rows, columns)`` of layers, which it may use up.

    ``factor`` says what the values are: a ``delta``, an ``up`` or a ``down``.
    """
    return _prepared(settings, layers, weights, factor, None)(values, 0, None)


def _prepared(
    settings: Settings,
    layers: Sequence[AlignedLayer],
    weights: tuple[float, ...] | list[float],
    factor: str,
    figures: tuple[float, ...] | None,
) -> Callable[[Tensor, int, Tensor | None], Tensor]:
    """The method as a function of some values, of the place of the first, and of where the result may be.

    ``figures`` are of the whole layer.
    """
    method, params, multipliers = settings.method, dict[str, Any](settings.params), torch.tensor(weights)
    if "statistics" in method.supplied:
        params["statistics"] = figures
    for place, name in enumerate(_cuts(settings)):
        limits = None if figures is None else figures[place * len(weights) : (place + 1) * len(weights)]
        params[name] = None if limits is None else torch.tensor(limits).view(-1, 1, 1)
    if "overwrite" in method.supplied:
        params["overwrite"] = True
    masks = masks_of(layers, settings.seed, factor) if "generator" in method.supplied else None

    def call(values: Tensor, first: int, out: Tensor | None) -> Tensor:
        if masks is not None:
            params["generator"] = masks.at(first)
        if "out" in method.supplied:
            params["out"] = out
        result = method.fn(values, multipliers, **params)
        assert isinstance(result, Tensor)
        return result

    return call


def _split(value: float) -> tuple[float, float]:
    """A scalar as a product of two factors of equal size; the second one carries the sign."""
    root = math.sqrt(abs(value))
    return root, math.copysign(root, value)
