"""What a merge did to each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..blocks import BlockStrengths
from ..lora import Layer, Lora
from ..names.noise_experts import across_experts
from ..names.recognise import family_title
from .align import AlignedLayer
from .common_metadata import facts_of_use

_SAMPLED_ROWS = 32
_LISTED = 6
LEFT_OUT = "block strength 0"  # how the reason begins for a layer that no LoRA takes part in


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One line of the report. ``status`` is ``merged``, ``passed`` (copied unchanged) or ``skipped``."""

    name: str
    status: str
    reason: str = ""
    loras: int = 1
    ranks_in: tuple[int, ...] = ()
    rank_out: int | None = None  # None: full rank, computed on demand
    energy_kept: float | None = None
    sign_conflict: float | None = None


@dataclass(frozen=True, slots=True)
class MergeReport:
    """The lines of all layers, and warnings about the merge as a whole."""

    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, merged: list[LayerReport], loras: list[Lora], blocks: Sequence[BlockStrengths | None] = ()
    ) -> MergeReport:
        """Return a report of the merged layers, of the rest of the LoRAs, and of what a user should know."""
        skipped = [
            LayerReport(name, "skipped", f"{lora.name}: {reason}")
            for lora in loras
            for name, reason in lora.unmerged.items()
        ]
        warnings = (
            *_warnings_of(loras),
            *across_experts(loras),
            *_strangers(loras),
            *dora_beside_plain(loras),
            *block_warnings(loras, blocks),
            *facts_of_use(loras).contradictions,
        )
        return cls((*merged, *_left_out(merged, loras), *skipped), warnings)

    def counts(self) -> dict[str, int]:
        """How many layers were merged, passed and skipped."""
        return dict(Counter(layer.status for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)


def sign_conflict(aligned: AlignedLayer, thresholds: tuple[float, ...] | None = None) -> float | None:
    """Return the share of entries where LoRAs have opposite signs, after trimming; None for a single LoRA.

    Estimated from up to 32 rows spread evenly over the matrix.
    """
    if len(aligned.parts) < 2:
        return None
    tile = sampled_rows(aligned.parts)
    if thresholds is not None:
        tile *= tile.abs() >= torch.tensor(thresholds, device=tile.device).view(-1, 1, 1)
    signs = tile.sign()
    opposed = (signs.amax(dim=0) > 0) & (signs.amin(dim=0) < 0)
    return float(opposed.float().mean())


def sampled_rows(parts: Sequence[Layer]) -> Tensor:
    """Return up to 32 evenly spread rows of each delta of one layer; ``(n, rows, in)`` in float32."""
    rows = parts[0].matrix_shape[0]
    chosen = torch.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).long()
    return torch.stack([part.rows(None)(chosen.to(part.device)) for part in parts])


def block_warnings(loras: Sequence[Lora], blocks: Sequence[BlockStrengths | None]) -> list[str]:
    """Return a line for each LoRA some of whose block strengths select no layer."""
    lines = []
    for lora, strengths in zip(loras, blocks, strict=False):
        lost = strengths.without_layers(lora.layers) if strengths else []
        if lost:
            lines.append(f"{lora.name}: no layer is selected by the block strength of {', '.join(lost)}")
    return lines


def block_lines(loras: Sequence[Lora], blocks: Sequence[BlockStrengths | None]) -> list[str]:
    """Return a line for each LoRA with block strengths: how many layers each strength applies to."""
    lines = []
    for lora, strengths in zip(loras, blocks, strict=True):
        if strengths is not None:
            counts = Counter(strengths.factor(name) for name in lora.layers)
            shares = [f"{counts[f]} layers at {f:g}" for f in sorted(counts, reverse=True) if f]
            shares += [f"{counts[0.0]} left out"] if counts[0.0] else []
            shown = shares if len(shares) <= _LISTED else [*shares[:_LISTED], "..."]
            lines.append(f"{lora.name}: blocks {strengths}: {', '.join(shown)}")
    return lines


def _left_out(merged: list[LayerReport], loras: list[Lora]) -> list[LayerReport]:
    """Layers in which every LoRA that has them has block strength 0."""
    known = {row.name for row in merged}
    names = dict.fromkeys(name for lora in loras for name in lora.layers if name not in known)
    return [
        LayerReport(
            name,
            "skipped",
            f"{LEFT_OUT} in {', '.join(lora.name for lora in loras if name in lora.layers)}",
        )
        for name in names
    ]


def _warnings_of(loras: list[Lora]) -> list[str]:
    return [f"{lora.name}: {warning}" for lora in loras for warning in lora.warnings]


def dora_beside_plain(loras: Sequence[Lora]) -> list[str]:
    """Return a warning if DoRAs are merged with other LoRAs: no order of loading gives the same result."""
    doras = [lora.name for lora in loras if any(layer.rescales_base for layer in lora.layers.values())]
    others = [lora.name for lora in loras if lora.layers and lora.name not in doras]
    if not doras or not others:
        return []
    return [
        f"{', '.join(doras)} is a DoRA and {', '.join(others)} is not: each change is computed from the base "
        "model alone and then merged, whereas a loader computes a DoRA's from what it has already loaded"
    ]


def _strangers(loras: list[Lora]) -> list[str]:
    """Pairs that share no layer: legal, but often a sign of two different base models."""
    return [
        f"{a.name} and {b.name} share no layer, so nothing is merged between them{_of_models(a, b)}"
        for i, a in enumerate(loras)
        for b in loras[i + 1 :]
        if a.layers and b.layers and a.layers.keys().isdisjoint(b.layers)
    ]


def _of_models(a: Lora, b: Lora) -> str:
    """The models of two LoRAs, where their names show different ones."""
    first, second = family_title(a.layers), family_title(b.layers)
    if first is None or second is None or first == second:
        return ""
    return f": {a.name} is for {first}, {b.name} for {second}"
