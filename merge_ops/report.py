"""What a merge did to each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .spaces import LayerStack
from .types import Layer, Lora

_SAMPLED_ROWS = 32


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One line of the report. ``status`` is merged, passed (carried over as it was) or skipped."""

    name: str
    status: str
    reason: str = ""
    loras: int = 1
    ranks_in: tuple[int, ...] = ()
    rank_out: int | None = None  # None: full rank, made on demand
    energy_kept: float | None = None
    sign_conflict: float | None = None


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The lines of all layers, and warnings about the merge as a whole."""

    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, merged: list[LayerReport], loras: list[Lora]) -> MergeReport:
        """Add to the merged layers what the LoRAs hold besides, and what a user should know about them."""
        skipped = [
            LayerReport(name, "skipped", f"{lora.name}: {reason}")
            for lora in loras
            for name, reason in lora.unmerged.items()
        ]
        return cls((*merged, *skipped), (*_warnings_of(loras), *_strangers(loras)))

    def counts(self) -> dict[str, int]:
        """How many layers were merged, passed and skipped."""
        return dict(Counter(layer.status for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sign_conflict(stack: LayerStack, thresholds: tuple[float, ...] | None = None) -> float | None:
    """Share of the entries where two LoRAs have opposite signs, after trimming; None for a single LoRA.

    Estimated from up to 32 rows spread evenly over the matrix.
    """
    if len(stack.parts) < 2:
        return None
    tile = sampled_rows(stack.parts)
    if thresholds is not None:
        tile *= tile.abs() >= torch.tensor(thresholds, device=tile.device).view(-1, 1, 1)
    signs = tile.sign()
    opposed = (signs.amax(dim=0) > 0) & (signs.amin(dim=0) < 0)
    return float(opposed.float().mean())


def sampled_rows(parts: Sequence[Layer]) -> Tensor:
    """Up to 32 rows of each delta of one layer, evenly spread; ``(n, rows, in)`` in float32."""
    rows = parts[0].matrix_shape[0]
    chosen = torch.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).long()
    return torch.stack([part.rows(None)(chosen.to(part.device)) for part in parts])


def _warnings_of(loras: list[Lora]) -> list[str]:
    return [f"{lora.name}: {warning}" for lora in loras for warning in lora.warnings]


def _strangers(loras: list[Lora]) -> list[str]:
    """Pairs that share no layer: legal, but often a sign of two different base models."""
    return [
        f"{a.name} and {b.name} share no layer, so nothing is merged between them"
        for i, a in enumerate(loras)
        for b in loras[i + 1 :]
        if a.layers.keys().isdisjoint(b.layers)
    ]
