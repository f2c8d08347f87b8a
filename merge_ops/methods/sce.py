"""SCE: LoRAs are weighted by their energy, and signs that are outvoted are dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import torch

from .registry import Param, merge_method
from .thresholds import magnitude_thresholds

if TYPE_CHECKING:
    from torch import Tensor


def _measure(tiles: Callable[[], Iterator[Tensor]], weights: Tensor, *, density: float) -> tuple[float, ...]:
    """The variance from which on entries are kept, and the energy that each LoRA has in those."""
    least = 0.0
    if 0 < density < 1 and len(weights) > 1:
        spreads = torch.cat([_variance(_weighted(tile, weights)) for tile in tiles()])
        (least,) = magnitude_thresholds([spreads], density)
    energies = torch.zeros(len(weights), dtype=torch.float64)
    for tile in tiles():
        values = _weighted(tile, weights)
        values *= _variance(values) >= least
        energies += torch.linalg.vector_norm(values, dim=-1).double().square().sum(-1).cpu()
    return (least, *energies.tolist())


@merge_method("sce", "SCE", paper="arXiv:2408.07990", measure=_measure)
def sce(
    deltas: Tensor,  # (n, ..., out, in)
    weights: Tensor,  # (n,)
    *,
    density: Annotated[
        float,
        Param(
            (
                "Fraction of the entries that is kept: those in which the LoRAs differ the most. 1 keeps "
                "everything."
            ),
            min=0,
            max=1,
            step=0.01,
        ),
    ] = 1.0,
    statistics: Sequence[float] | None = None,
) -> Tensor:  # (..., out, in)
    """Keep the entries in which the LoRAs differ, and average those with the elected sign by energy.

    1. select:    of ``values_i = weights[i] * deltas[i]``, keep the share ``density`` of the entries with the
       largest variance among the LoRAs
    2. calculate: ``energy_i``, the sum of the squares of what is kept of ``values_i``
    3. erase:     ``merged = sum_i energy_i * values_i / sum_i energy_i`` over the LoRAs whose entry has the
       sign of ``sum_i values_i``
    """
    if density <= 0:
        return torch.zeros_like(deltas[0])
    values = _weighted(deltas, weights)
    least, energies = _given(values, density) if statistics is None else _read(values, statistics)
    if len(values) > 1:
        values = values * (_variance(values) >= least)
    total = energies.sum(0)
    shares = torch.where(total > 0, energies / total.clamp(min=1e-30), 1 / len(values))
    signs = values.sum(0).ge_(0).mul_(2).sub_(1)
    agreeing = shares * (values * signs > 0)
    merged: Tensor = (agreeing * values).sum(0) / agreeing.sum(0).clamp(min=1e-30)
    return merged


def _given(values: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """The statistics of whole matrices with batch dims: ``(..., 1, 1)`` and ``(n, ..., 1, 1)``."""
    spreads = _variance(values)
    if density < 1 and len(values) > 1:
        found = magnitude_thresholds(spreads.reshape(-1, *spreads.shape[-2:]).unbind(), density)
    else:
        found = [0.0] * spreads[..., 0, 0].numel()
    least = torch.tensor(found, device=values.device).view(*spreads.shape[:-2], 1, 1)
    energies = (values * (spreads >= least)).double().square().sum(-1, keepdim=True).sum(-2, keepdim=True)
    return least, energies.to(values.dtype)


def _read(values: Tensor, statistics: Sequence[float]) -> tuple[Tensor, Tensor]:
    least, *energies = statistics
    largest = max(*energies, 1e-300)  # shares are all that counts, and these fit into float32
    scaled = torch.tensor([energy / largest for energy in energies], device=values.device)
    return torch.tensor(least, device=values.device), scaled.view(-1, *[1] * (values.ndim - 1))


def _weighted(deltas: Tensor, weights: Tensor) -> Tensor:
    return deltas * weights.to(deltas).view(-1, *[1] * (deltas.ndim - 1))


def _variance(values: Tensor) -> Tensor:
    return values.var(dim=0, correction=0)
