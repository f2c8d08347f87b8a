"""How much of its rank a LoRA uses: the energy that each rank keeps, overall and per block.

Energy is the squared Frobenius norm. Ranks count per layer, as in ``resize --rank``: the energy at rank r is
the share of all squared singular values that remains when every layer is truncated to rank r.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.order import block_of, in_model_order
from ..lora import Layer, Lora, LowRank
from ..merging.svd import squared_singular_values, squared_singular_values_of

SHARES = (0.9, 0.95, 0.99)
_BUDGET = 1.5e11  # multiplications for full-rank layers, a few seconds; low-rank layers are always measured


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """The energy that each rank keeps. ``kept[r - 1]`` belongs to rank r; the last value is 1."""

    kept: Tensor  # (ranks,), float64, rising
    layers: int

    def rank_for(self, share: float) -> int:
        """Return the smallest rank that keeps this share of the energy; 0 if there is no energy."""
        if not len(self.kept):
            return 0
        return int(torch.searchsorted(self.kept, min(share, float(self.kept[-1])) - 1e-12)) + 1

    def energy_at(self, rank: int) -> float:
        """Return the share of the energy that this rank keeps."""
        return float(self.kept[min(rank, len(self.kept)) - 1]) if len(self.kept) else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class LoraSpectrum:
    """The spectrum of a LoRA. ``unmeasured`` counts full-rank layers that were skipped to save time."""

    name: str
    rank: int  # the largest that any layer was trained with
    whole: Spectrum
    blocks: dict[str, Spectrum]
    unmeasured: int = 0


def spectrum_of(lora: Lora) -> LoraSpectrum:
    """Measure a LoRA: low-rank layers exactly from their factors, others as far as the budget allows.

    If not all fit into the budget, the measured layers are spread evenly over the model.
    """
    cheap = [name for name, layer in lora.layers.items() if isinstance(layer, LowRank)]
    costly = {name: _plan(layer) for name, layer in lora.layers.items() if not isinstance(layer, LowRank)}
    total = sum(cost for cost, _ in costly.values())
    every = max(1, -(-int(total) // int(_BUDGET)))
    chosen = list(costly)[::every]
    squares = {name: squared_values(lora.layers[name]) for name in (*cheap, *chosen)}
    by_block: dict[str, list[Tensor]] = {}
    for name in lora.layers:
        if name in squares:
            by_block.setdefault(block_of(name), []).append(squares[name])
    blocks = {block: _pooled(by_block[block]) for block in in_model_order(by_block)}
    whole = _pooled(list(squares.values()))
    return LoraSpectrum(lora.name, lora.rank, whole, blocks, len(costly) - len(chosen))


def squared_values(layer: Layer) -> Tensor:
    """Return the squared singular values of a layer's delta, descending, in float64; exact for every kind."""
    if isinstance(layer, LowRank):
        return layer.scale**2 * squared_singular_values(layer.up, layer.down)
    return _plan(layer)[1]()


def _plan(layer: Layer) -> tuple[float, Callable[[], Tensor]]:
    """Return the cheapest exact way to the squared singular values, and its rough cost in multiplications."""
    rows, columns = layer.matrix_shape
    halves = layer.kronecker_factors()
    if halves is not None:
        return sum(_gram_cost(*half.shape) for half in halves), lambda: _of_kronecker(layer)
    inner = layer.product_rank
    if inner is not None and inner < min(rows, columns) // 2:
        return (rows + columns) * inner**2 + 20 * inner**3, lambda: _of_product(layer)
    return _gram_cost(rows, columns), lambda: squared_singular_values_of(layer.matrix())


def _gram_cost(rows: int, columns: int) -> float:
    side = min(rows, columns)
    return float(rows * columns * side + 20 * side**3)


def _of_kronecker(layer: Layer) -> Tensor:
    """Multiply the singular values of the factors: their products are those of a Kronecker product."""
    left, right = map(squared_singular_values_of, layer.kronecker_factors() or ())
    return layer.scale**2 * torch.outer(left, right).flatten().sort(descending=True).values


def _of_product(layer: Layer) -> Tensor:
    """Read the singular values from factors whose product is the delta."""
    return layer.scale**2 * squared_singular_values(*layer.product_factors() or ())


def _pooled(squares: list[Tensor]) -> Spectrum:
    """Sum over the layers what each of them keeps at each rank."""
    ranks = max((len(values) for values in squares), default=0)
    total = torch.zeros(ranks, dtype=torch.float64)
    for values in squares:
        total[: len(values)] += values.cpu()
    energy = total.cumsum(0)
    if not ranks or not energy[-1] > 0:
        return Spectrum(total[:0], len(squares))
    return Spectrum(energy / energy[-1], len(squares))
