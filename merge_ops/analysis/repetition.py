"""Whether LoRAs repeat each other: their sum is then larger than that of LoRAs that do different things."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..merging.cores import stacked_factors
from ..merging.merged import Merged
from ..methods.bases import gram_of_deltas
from .interference import interference_of

LIMIT = 1.05  # two trainings of one subject were at 1.10 to 1.16, different things at most at 1.014
_WORK = 4e9  # multiplications, about a quarter of a second; of more, a share of the layers is measured
_GOLDEN = 0.6180339887498949  # its multiples choose layers evenly, whatever comes back in their order


@dataclass(frozen=True, slots=True)
class Repetition:
    """``ratio`` is ``|sum T| / sqrt(sum |T|^2)`` over all layers, with T the deltas times their weights."""

    ratio: float

    @property
    def is_notable(self) -> bool:
        """True if the LoRAs repeat each other so much that their sum overshoots."""
        return self.ratio > LIMIT

    @property
    def strength(self) -> float:
        """What the sum has to be multiplied by to be as large as if the LoRAs did different things."""
        return 1 / self.ratio

    @classmethod
    def of(cls, total: float, parts: float) -> Repetition:
        """Return it from ``|sum T|^2`` and ``sum |T|^2``; 1 where there is nothing."""
        return cls(math.sqrt(max(total, 0.0) / parts) if parts > 0 else 1.0)

    def sentence(self, who: str = "the LoRAs") -> str:
        """What it means for a merge, with what to do about it."""
        return (
            f"{who} repeat each other: their sum is {self.ratio:.2f} times as large as that of LoRAs that do "
            f"different things; {self.strength:.2f} times the strengths would match that, or take even or "
            "mean, which do not count twice what LoRAs share"
        )


def repetition_of(merged: Merged) -> Repetition | None:
    """Return how far the LoRAs of a merge repeat each other, with their weights; None if it is not cheap.

    From the Gram matrices of the factors, in float32. None for a single LoRA, and if no layer is low rank.
    """
    shared = [layer.aligned for layer in merged.layers.values() if layer.aligned.is_low_rank]
    if len(merged.loras) < 2 or not shared:
        return None
    work = sum(sum(la.parts[0].matrix_shape) * sum(la.ranks) ** 2 for la in shared)
    total = parts = 0.0
    for i, aligned in enumerate(shared):
        if i and i * _GOLDEN % 1 > _WORK / work:
            continue
        up, down, ranks = stacked_factors(aligned, None)
        gram = gram_of_deltas((up.T @ up).double(), (down @ down.T).double(), ranks)
        weights = torch.tensor(aligned.weights, dtype=torch.float64)
        weighted = gram.cpu() * torch.outer(weights, weights)
        total += float(weighted.sum())
        parts += float(weighted.trace())
    return Repetition.of(total, parts)


def advice_on_sum(merged: Merged) -> list[str]:
    """Return a sentence for a merge that adds LoRAs which repeat or drown each other, else nothing."""
    if not merged.request.settings.method.linear:
        return []
    repeated = repetition_of(merged)
    if repeated is not None and repeated.is_notable:
        return [repeated.sentence()]
    found = interference_of(
        [layer.aligned for layer in merged.layers.values()], [lora.name for lora in merged.loras]
    )
    return [found.sentence] if found is not None and found.is_notable else []
