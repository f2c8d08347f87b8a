"""The result of an extraction: a merge of one LoRA, which knows how much of the difference it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..lora import Lora
from ..merging.merge import carry_out
from ..merging.merged import Merged
from ..merging.report import LayerReport, MergeReport
from ..merging.request import Request
from .found import Found


class Extracted(Merged):
    """A LoRA that was extracted from two models. Made by ``extract``; everything that takes a merge takes it.

    ``found`` says what share of the difference each layer holds, and what is not in the LoRA. ``stems`` are
    the beginnings of keys in a file that do not follow from the names of layers.
    """

    def __init__(self, lora: Lora, found: Found, record: dict[str, Any], stems: dict[str, str]) -> None:
        merged = carry_out(Request.of([lora]), [lora])
        held = {layer.name: layer.held for layer in found.layers}
        layers = {
            name: replace(layer, energy_kept=held.get(name, 1.0)) for name, layer in merged.layers.items()
        }
        request = replace(merged.request, extracted=record)
        super().__init__(request, merged.loras, layers, {}, {}, None, torch.float32)
        self.found = found
        self.stems = stems

    @property
    def energy_kept(self) -> float:
        """The share of the whole difference that the layers hold."""
        return self.found.held

    def _reported(self, measured: bool) -> MergeReport:
        report = super()._reported(measured)
        same = [LayerReport(name, "skipped", "the same in both models") for name in self.found.same]
        ignored = [LayerReport(name, "skipped", why) for name, why in self.found.ignored.items()]
        return replace(report, layers=(*report.layers, *same, *ignored))
