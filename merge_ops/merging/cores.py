"""Merges made of the LoRAs' factors alone, for methods on cores and for those on shared coordinates.

The factors of all LoRAs of a layer are stacked, ``up (out, R)`` and ``down (R, in)``. A method on cores turns
their Gram matrices into ``K (R, R)``, and the merge is ``(up @ K) @ down``: exact, and without a full delta.
Kinds of adapters that are no product of factors are written as one, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleLoraError, ParameterError
from ..lora import Layer, LowRank
from ..methods.bases import selectors, spread
from ..steady import in_order, one_thread
from .align import AlignedLayer
from .overflow import refuse_infinity
from .request import Settings
from .spaces import apply_method

Moments = Mapping[str, Tensor]  # layer -> (n, R, R), in the order of its parts and of ``stacked_factors``
_CHUNK = 1 << 20  # entries of a factor that are in float64 at a time
_ON_CPU = 256  # up to this R, cores are solved on the CPU: launches would cost more than the work


def stacked_factors(
    aligned: AlignedLayer, device: torch.device | None
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Return float32 ``(up (out, R), down (R, in))`` of all parts, and how many columns of up each has.

    ``alpha / rank`` is folded into ``up``; weights are not. The deltas are ``up[:, own] @ down[own]``.
    """
    pairs = [_factors_of(part, device) for part in aligned.parts]
    ranks = tuple(down.shape[0] for _, down in pairs)
    if len(pairs) == 1:
        return *pairs[0], ranks
    return torch.cat([up for up, _ in pairs], dim=1), torch.cat([down for _, down in pairs]), ranks


@one_thread()
def solve_cores(
    group: Sequence[AlignedLayer],
    settings: Settings,
    device: torch.device | None,
    moments: Moments | None = None,
) -> list[Tensor]:
    """Return ``K (R, R)`` in float64 on the CPU for each of some layers of the same ranks and weights.

    A layer that the recording lacks is added up, as by ``linear``.

    Raises:
        IncompatibleLoraError: if the recording was made with other LoRAs.
    """
    grams_up, grams_down = [], []
    ranks: tuple[int, ...] = ()
    for layer in group:
        up, down, ranks = stacked_factors(layer, device)
        grams_up.append(_gram(up.T))
        grams_down.append(_gram(down))
    weights = torch.tensor(group[0].weights, dtype=torch.float64)
    supplied: dict[str, Any] = {}
    if settings.method.needs_recording:
        if moments is None or group[0].name not in moments:
            return [torch.diag(spread(weights, ranks)) for _ in group]
        supplied["moments"] = torch.stack([_checked(moments[la.name], la, ranks) for la in group], dim=1)
    if "places" in settings.method.supplied:
        supplied["places"] = tuple((index, group[0].count) for index in group[0].indices)
    gram_up, gram_down = _solvable(torch.stack(grams_up)), _solvable(torch.stack(grams_down))
    cores: Tensor = settings.method.fn(gram_up, gram_down, ranks, weights, **settings.params, **supplied)
    return [core.cpu().clone() for core in cores.unbind()]  # a view would keep the whole group alive


@one_thread()
def factors_of_core(
    aligned: AlignedLayer, settings: Settings, core: Tensor | None, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Return the merge as float32 ``(up (out, R), down (R, in))``; ``core`` is solved for if it is None.

    All scales are on ``up``; ``down`` has the LoRAs' own values.
    """
    up, down, _ = stacked_factors(aligned, device)
    if core is None:
        (core,) = solve_cores([aligned], settings, device)
    core = core * settings.scale
    merged = _times(up, core)
    if not bool(merged.isfinite().all()):  # a factor too small, and another too large for float32
        sizes = down.abs().amax(dim=1).double()
        gains = torch.where(sizes > 0, torch.exp2(-sizes.clamp(min=1e-300).log2().floor()), 1.0)
        merged, down = _times(up, core / gains.to(core)), (down.double() * gains[:, None]).float()
        refuse_infinity(aligned.name, merged, 1.0)
    return merged, down


@one_thread()
def factors_of_coordinates(
    aligned: AlignedLayer, settings: Settings, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Apply an entrywise method to the coordinates of the deltas in a basis that all share (KnOTS).

    The basis ``U (out, R)`` are the left singular vectors of the deltas side by side, and the coordinates of
    a delta are ``U.T @ delta (R, in)``. Returns ``(U, merged coordinates)``, with the scale on the latter.
    """
    up, down, ranks = stacked_factors(aligned, device)
    gram_up, gram_down = _solvable(_gram(up.T)), _solvable(_gram(down))
    own = _starts(ranks)
    spectrum, vectors = torch.linalg.eigh(gram_down * _blocks(ranks, gram_down))
    root = vectors * spectrum.clamp(min=0).sqrt()
    squares, turn = torch.linalg.eigh(root.T @ gram_up @ root)
    # eigenvalues in float64 from float32 factors: what is below this is rounding
    live = squares > 1e-12 * squares[-1].clamp(min=1e-300)
    live[-1] = True  # even of zeros there is one coordinate
    basis = root @ turn[:, live] / squares[live].clamp(min=1e-300).sqrt()  # U = up @ basis
    onto = (basis.T @ gram_up).to(down.device, torch.float32)  # U.T @ up
    coordinates = torch.stack([onto[:, at] @ down[at] for at in own])
    # a singular vector has no sign of its own, but a vote in which a tie counts as plus needs one
    signs = coordinates.sum(0).sum(1).ge(0).float().mul(2).sub(1)
    coordinates *= signs[:, None]
    merged = apply_method(settings, [aligned], coordinates, aligned.weights, "delta")
    refuse_infinity(aligned.name, merged, settings.scale * len(merged))  # U has entries of at most 1
    return _times(up, basis * signs.to(basis)), merged * settings.scale


def _factors_of(part: Layer, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Float32 ``(up, down)`` whose product is the delta of one part; a full matrix is its own factor."""
    if isinstance(part, LowRank):
        return part.factors(device)
    rows, columns = part.matrix_shape
    rank = part.product_rank
    pair = part.product_factors() if rank is not None and rank < min(rows, columns) else None
    if pair is not None:
        up, down = (factor.to(device, torch.float32) for factor in pair)
        return up * part.scale, down
    matrix = part.matrix(device)
    whole = torch.eye(min(rows, columns), device=matrix.device)
    return (whole, matrix) if rows <= columns else (matrix, whole)


def _gram(wide: Tensor) -> Tensor:
    """``wide @ wide.T`` in float64, of ``(R, any)``; on the CPU if the device has no float64."""
    wide = wide if wide.device.type in ("cpu", "cuda") else wide.cpu()
    count = wide.shape[0]
    total = torch.zeros(count, count, dtype=torch.float64, device=wide.device)

    def of(block: Tensor) -> Tensor:
        exact = block.double()
        return exact @ exact.T

    blocks = torch.split(wide, max(1, _CHUNK // max(count, 1)), dim=1)
    for part in in_order(of, blocks, wide.numel() * count):
        total += part
    return total


def _solvable(gram: Tensor) -> Tensor:
    return gram.cpu() if gram.shape[-1] <= _ON_CPU else gram


def _blocks(ranks: Sequence[int], like: Tensor) -> Tensor:
    """1 where row and column belong to the same LoRA; ``(R, R)``."""
    own = selectors(ranks, like)
    return own.T @ own


def _times(up: Tensor, core: Tensor) -> Tensor:
    """``up @ core`` in float32, computed in float64, where large entries of ``core`` may cancel."""
    where = up.device
    up = up if where.type in ("cpu", "cuda") else up.cpu()
    core = core.to(up.device)
    blocks = torch.split(up, max(1, _CHUNK // max(up.shape[1], 1)))
    done = in_order(lambda block: (block.double() @ core).float(), blocks, up.numel() * core.shape[1])
    return torch.cat(done).to(where)


def _starts(ranks: Sequence[int]) -> list[slice]:
    ends = torch.tensor(ranks).cumsum(0).tolist()
    return [slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True)]


def _checked(moments: Tensor, aligned: AlignedLayer, ranks: tuple[int, ...]) -> Tensor:
    wanted = (len(ranks), sum(ranks), sum(ranks))
    if tuple(moments.shape) != wanted:
        raise IncompatibleLoraError(
            f"{aligned.name}: the recording's moments have the shape {tuple(moments.shape)} where {wanted} "
            "is needed; it was made with other LoRAs or other block strengths, so record these"
        )
    if not bool(moments.isfinite().all()):
        raise ParameterError(
            f"{aligned.name}: the recording's moments contain NaN or infinity; record again, in a dtype with "
            "a larger range"
        )
    return moments.to("cpu", torch.float64)
