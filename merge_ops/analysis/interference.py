"""Whether LoRAs drown each other: how much the others do where a LoRA acts, compared with the LoRA itself.

Cosines and signs do not show it. In the sets of ``make quality`` all LoRAs but twins had cosines within 0.03
of zero and opposite signs in half of the weights, whether the sum kept all of them or a third. What told the
sets apart is what the other LoRAs do to the inputs that a LoRA reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..merging.align import AlignedLayer
from ..merging.cores import stacked_factors

# Sets of `make quality` below this kept 0.69 to 1.03 of their LoRAs when they were added, on average 0.89;
# sets above it 0.31 to 0.89, on average 0.50, and distilled at least 0.93.
LIMIT = 0.35
_LAYERS = 24  # measured at most, spread over the model: a LoRA behaves alike in most of them
_WORK = 4e8  # multiplications, some hundredths of a second
_GOLDEN = 0.6180339887498949  # its multiples choose layers evenly, whatever comes back in their order


@dataclass(frozen=True, slots=True)
class Interference:
    """``shares[i]`` is ``|O T_i.T| / |T_i T_i.T|``, with T the weighted deltas and O the sum of the others.

    That is what the others make of the inputs that LoRA i reads, each input counted by what T_i makes of it.
    The squares are averaged over the layers by the energy of T_i.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The quadratic mean over the LoRAs."""
        return math.sqrt(sum(share**2 for share in self.shares) / max(len(self.shares), 1))

    @property
    def is_notable(self) -> bool:
        """True if a sum loses much of the LoRAs."""
        return self.mean > LIMIT

    @property
    def sentence(self) -> str:
        """What it means for a merge, with what to do about it."""
        share, name = max(zip(self.shares, self.names, strict=True))
        others = "the other LoRA does" if len(self.names) == 2 else "the other LoRAs do"
        return (
            f"the LoRAs get in each other's way: where {name} acts, {others} {100 * share:.0f} % as much as "
            f"{name} itself; use fewer LoRAs, try even, or record and distill them, which keeps the most"
        )


def interference_of(layers: Sequence[AlignedLayer], names: Sequence[str]) -> Interference | None:
    """Measure LoRAs with their weights; None for a single LoRA, and if no layer is low rank.

    From the factors, in float32; of many layers, a part is measured.
    """
    low = [la for la in layers if la.is_low_rank]
    work = sum(sum(la.parts[0].matrix_shape) * sum(la.ranks) ** 2 for la in low)
    part = min(1.0, _LAYERS / max(len(low), 1), _WORK / max(work, 1))
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for number, aligned in enumerate(low):
        if number == 0 or number * _GOLDEN % 1 < part:
            sums[:, list(aligned.indices)] += _measure(aligned)
    found = [index for index in range(len(names)) if sums[1, index] > 0]
    if len(found) < 2:
        return None
    shares = (sums[0] / sums[1].clamp(min=1e-300)).clamp(min=0).sqrt().tolist()
    return Interference(tuple(names[index] for index in found), tuple(shares[index] for index in found))


def _measure(aligned: AlignedLayer) -> Tensor:
    """Return for each LoRA of one layer its squared share times its energy, and its energy, (2, n)."""
    up, down, ranks = stacked_factors(aligned, None)
    up = up * torch.repeat_interleave(torch.tensor(aligned.weights), torch.tensor(ranks)).to(up)
    gram_up, gram_down = (up.T @ up).double().cpu(), (down @ down.T).double().cpu()
    ends = torch.tensor(ranks).cumsum(0).tolist()
    result = torch.zeros(2, len(ranks), dtype=torch.float64)
    for place, (end, rank) in enumerate(zip(ends, ranks, strict=True)):
        own = slice(end - rank, end)
        inputs = gram_down[:, own]  # (R, r)
        read = inputs @ gram_up[own, own]
        alone = ((gram_up[own, own] @ inputs[own]) * read[own]).sum()
        inputs, read = inputs.clone(), read.clone()
        inputs[own], read[own] = 0, 0
        energy = (gram_up[own, own] * gram_down[own, own]).sum()
        others = ((gram_up @ inputs) * read).sum()
        if alone > 0:
            result[0, place], result[1, place] = energy * others / alone, energy
    return result
