"""Relations between LoRAs: norms, cosines and sign conflicts of each pair, overall and per block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..blocks.order import block_of, in_model_order
from ..lora import Layer, Lora, LowRank
from ..merging.align import align
from ..merging.report import sampled_rows
from ..merging.request import Request

_TILE = 1 << 20  # entries of a delta that are formed at a time
_PRODUCTS, _SQUARES, _CONFLICTS, _ENTRIES, _LAYERS = range(5)


@dataclass(frozen=True, slots=True)
class BlockComparison:
    """Two LoRAs in one block of the model."""

    block: str
    first: str
    second: str
    layers: int  # shared by both
    cosine: float  # of the two deltas, over the shared layers of the block
    sign_conflict: float  # share of entries with opposite signs, estimated from some rows
    norm_first: float  # Frobenius, over the shared layers of the block
    norm_second: float


@dataclass(frozen=True, slots=True)
class Relation:
    """Two LoRAs over all layers that they share; all figures are 0 if they share none."""

    first: str
    second: str
    layers: int
    cosine: float
    sign_conflict: float
    norm_first: float
    norm_second: float
    blocks: tuple[BlockComparison, ...]  # in model order


class Relations:
    """The figures of n LoRAs: per block a tensor (5, n, n) of sums over the layers that LoRAs i and j share.

    The five sums are the inner products, the squared norms of i, the entries of opposite sign, all entries,
    and the number of layers.
    """

    def __init__(self, names: Sequence[str], sums: dict[str, Tensor]) -> None:
        self._names = tuple(names)
        self._sums = sums
        empty = torch.zeros(5, len(names), len(names), dtype=torch.float64)
        self._whole = sum(sums.values(), empty)

    @property
    def pairs(self) -> tuple[Relation, ...]:
        """Every pair in the order of the LoRAs, including pairs that share no layer."""
        count = len(self._names)
        return tuple(self._pair(i, j) for i in range(count) for j in range(i + 1, count))

    @property
    def norms(self) -> tuple[float, ...]:
        """The Frobenius norm of each LoRA at strength 1."""
        return tuple(self._whole[_SQUARES].diagonal().clamp(min=0).sqrt().tolist())

    @property
    def block_norms(self) -> tuple[dict[str, float], ...]:
        """The Frobenius norm of each LoRA in each block that it changes, in model order."""
        by_lora: tuple[dict[str, float], ...] = tuple({} for _ in self._names)
        for block, sums in self._sums.items():
            for i, norms in enumerate(by_lora):
                if sums[_LAYERS, i, i]:
                    norms[block] = max(float(sums[_SQUARES, i, i]), 0.0) ** 0.5
        return by_lora

    def _pair(self, i: int, j: int) -> Relation:
        first, second = self._names[i], self._names[j]
        blocks = tuple(
            BlockComparison(block, first, second, *_figures(sums, i, j))
            for block, sums in self._sums.items()
            if sums[_LAYERS, i, j]
        )
        return Relation(first, second, *_figures(self._whole, i, j), blocks)


def relate(loras: Sequence[Lora]) -> Relations:
    """Compare LoRAs with each other; deltas of low-rank layers are not formed.

    Raises:
        IncompatibleLoraError: if two LoRAs have different shapes for a layer.
    """
    sums: dict[str, Tensor] = {}
    count = len(loras)
    for aligned in align(list(loras), Request.of(loras)) if loras else ():
        having = [i for i in range(count) if aligned.name in loras[i].layers]
        sums_of_layer = _measure([loras[i].layers[aligned.name] for i in having])
        index = torch.tensor(having)
        whole = torch.zeros(5, count, count, dtype=torch.float64)
        whole[:, index[:, None], index] = sums_of_layer
        block = block_of(aligned.name)
        sums[block] = sums[block] + whole if block in sums else whole
    return Relations([lora.name for lora in loras], {block: sums[block] for block in in_model_order(sums)})


def _measure(parts: Sequence[Layer]) -> Tensor:
    """Return the five sums of one layer, (5, n, n)."""
    products = gram_of_deltas(parts)
    squares = products.diagonal()[:, None].expand_as(products)
    if len(parts) > 1:
        signs = sampled_rows(parts).sign_().flatten(1)
        own = signs.abs()
        conflicts = (own @ own.T - signs @ signs.T).double() / (2 * signs.shape[1])  # counts, so exact
    else:
        conflicts = torch.zeros_like(products)
    entries = torch.full_like(products, float(parts[0].matrix_shape[0] * parts[0].matrix_shape[1]))
    measured = (
        products,
        squares,
        conflicts.to(products.device) * entries,
        entries,
        torch.ones_like(products),
    )
    return torch.stack(measured).cpu()


def gram_of_deltas(parts: Sequence[Layer]) -> Tensor:
    """Return the Frobenius inner products of the deltas of one layer, (n, n) in float64.

    If all are low rank, only their factors are multiplied; otherwise the deltas are formed in row tiles.
    """
    low = [part for part in parts if isinstance(part, LowRank)]
    if len(low) == len(parts):
        return _gram_of_factors(low)
    rows, columns = parts[0].matrix_shape
    step = max(1, _TILE // columns)
    readers = [part.rows(None) for part in parts]
    total = torch.zeros(len(parts), len(parts), dtype=torch.float64)
    for first in range(0, rows, step):
        tile = torch.stack([read(slice(first, min(first + step, rows))) for read in readers])
        flat = tile.flatten(1).double()
        total += (flat @ flat.T).cpu()
    return total


def _gram_of_factors(parts: Sequence[LowRank]) -> Tensor:
    """Return ``<scale_i up_i down_i, scale_j up_j down_j>`` from the entrywise product of two Grams."""
    up = _side_by_side([part.up for part in parts], dim=1)  # (out, R)
    down = _side_by_side([part.down for part in parts], dim=0)  # (R, in)
    entrywise = (up.T @ up) * (down @ down.T)
    ranks = torch.tensor([part.rank for part in parts])
    owners = torch.repeat_interleave(torch.arange(len(parts)), ranks).to(up.device)
    scales = torch.tensor([part.scale for part in parts], dtype=torch.float64, device=up.device)
    member = torch.nn.functional.one_hot(owners, len(parts)).double() * scales  # (R, n)
    return member.T @ entrywise @ member


def _side_by_side(factors: Sequence[Tensor], dim: int) -> Tensor:
    """Factors as one matrix in float64; what has one type is converted in one pass."""
    if len({factor.dtype for factor in factors}) == 1:
        return torch.cat(list(factors), dim=dim).double()
    return torch.cat([factor.double() for factor in factors], dim=dim)


def _figures(sums: Tensor, i: int, j: int) -> tuple[int, float, float, float, float]:
    """Return the number of layers, cosine, sign conflict and both norms of a pair."""
    product, conflicts, entries, layers = (
        float(sums[k, i, j]) for k in (_PRODUCTS, _CONFLICTS, _ENTRIES, _LAYERS)
    )
    sizes = tuple(max(float(sums[_SQUARES][at]), 0.0) ** 0.5 for at in ((i, j), (j, i)))
    cosine = product / (sizes[0] * sizes[1]) if all(sizes) else 0.0
    return (
        int(layers),
        max(-1.0, min(cosine, 1.0)),
        conflicts / entries if entries else 0.0,
        sizes[0],
        sizes[1],
    )
