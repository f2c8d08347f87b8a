"""The result of a merge: its layers, the request that made it, and a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from ..adapters import Ia3
from ..errors import MergeError, ParameterError, did_you_mean
from ..lora import Lora, WholeWeight
from ..progress import Progress
from ..readers import READERS
from .devices import usable_device
from .merged_layer import MergedLayer
from .rank_rule import RankRule
from .report import LayerReport, MergeReport, sign_conflict
from .request import Request
from .spectra import Spectra, measure_spectra
from .step_distilled import lines_on_added
from .svd import product_inner


class Merged:
    """The result of a merge: the delta of every layer, and a report. Made by ``merge``.

    ``request`` is what was asked for and ``loras`` what was merged. ``whole_weights`` replace weights of the
    base model, and ``ia3`` are (IA)3 layers merged without the base model, so that their deltas are unknown.
    """

    def __init__(
        self,
        request: Request,
        loras: list[Lora],
        layers: dict[str, MergedLayer],
        whole_weights: dict[str, WholeWeight],
        ia3: dict[str, Ia3],
        device: torch.device | None,
        dtype: torch.dtype,
    ) -> None:
        self.request = request
        self.loras = loras
        self.whole_weights = whole_weights
        self.ia3 = ia3
        self._layers = layers
        self._device = device
        self._dtype = dtype
        self._spectra: Spectra | None = None

    @property
    def layers(self) -> Mapping[str, MergedLayer]:
        """The merged layers by name, in a fixed order: numbers in the names count, ``2`` before ``10``.

        Read-only. ``delta`` and ``factors`` compute what most users want of a layer.
        """
        return MappingProxyType(self._layers)

    @property
    def reader(self) -> str:
        """The program whose arithmetic the base-dependent adapters follow, one of ``READERS``."""
        parts = (part for lora in self.loras for part in lora.layers.values())
        return next((part.reader for part in parts if part.reader), READERS[0])

    def layer(self, name: str) -> MergedLayer:
        """Return one layer.

        Raises:
            MergeError: if no merged layer has that name; suggests the right one.
        """
        if name not in self._layers:
            raise MergeError(f"no merged layer is called {name!r}{did_you_mean(name, self._layers)}")
        return self._layers[name]

    def delta(
        self, name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return the weight change of one layer in the shape of its weight: ``(out, in)``, or the conv shape.

        Computed in float32 at each call, on ``device`` or where the merge ran.

        >>> merged.delta("unet.mid_block.attentions.0.proj_in").shape
        torch.Size([6, 8])

        Raises:
            MergeError: if no merged layer has that name.
        """
        layer = self.layer(name)
        matrix = layer.matrix(self._device if device is None else usable_device(device))
        return layer.template.as_weight(matrix).to(dtype or self._dtype)

    def addends(self, name: str) -> list[tuple[int, Callable[[], Tensor]]]:
        """Return what is added to the weight of one layer, one after the other: see ``MergedLayer.addends``.

        Each function gives a float32 tensor in the shape of the weight.

        Raises:
            MergeError: if no merged layer has that name.
        """
        layer = self.layer(name)

        def as_weight(make: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: layer.template.as_weight(make())

        return [(place, as_weight(make)) for place, make in layer.addends(self._device)]

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return ``(up (out, r), down (r, in))`` with every scale folded in; None if the layer is full rank.

        A convolution's kernel is folded into the columns of ``down``.

        >>> merged.factors("unet.mid_block.attentions.0.proj_in") is None  # TIES gives full rank
        True
        >>> up, down = merged.truncated(2).factors("unet.mid_block.attentions.0.proj_in")
        >>> up.shape, down.shape
        (torch.Size([6, 2]), torch.Size([2, 8]))

        Raises:
            MergeError: if no merged layer has that name.
        """
        pair = self.layer(name).factors(self._device)
        return None if pair is None else (pair[0].to(self._dtype), pair[1].to(self._dtype))

    def truncated(self, rank: int | RankRule) -> Merged:
        """Return a new merge with every layer truncated to at most ``rank``, and with its own report.

        A ``RankRule`` chooses the rank of each layer by its singular values.

        Raises:
            ParameterError: if the rank is below 1, or the rule is a size of a file.
        """
        if isinstance(rank, RankRule):
            ranks = self.spectra().ranks(rank)
            cut = {
                name: layer.cut_exactly(ranks[name], self._device) if name in ranks else layer
                for name, layer in self._layers.items()
            }
            request = replace(self.request, cut_by=rank)
            return Merged(request, self.loras, cut, self.whole_weights, self.ia3, self._device, self._dtype)
        if rank < 1:
            raise ParameterError(f"rank must be 1 or more, not {rank}")
        layers = {name: layer.truncated(rank, None, torch.float32) for name, layer in self._layers.items()}
        request = replace(self.request, cut_to=rank)
        return Merged(request, self.loras, layers, self.whole_weights, self.ia3, self._device, self._dtype)

    def spectra(self, progress: Progress | None = None) -> Spectra:
        """Return the singular values of every layer; they are measured when this is first called.

        ``progress`` is called as ``progress(done, total, layer)``.

        Raises:
            MergeError: if a layer contains NaN or infinity.
        """
        if self._spectra is None:
            self._spectra = measure_spectra(self._layers, self._device, progress)
        return self._spectra

    @cached_property
    def energy_kept(self) -> float:
        """The share of the whole merge's squared norm that truncation kept; 1 if nothing was truncated."""
        kept = lost = 0.0
        for layer in self._layers.values():
            pair = layer.factors() if layer.energy_kept < 1 or layer.fixed is not None else None
            if pair is not None and layer.energy_kept > 0:
                energy = product_inner(pair, pair)
                kept += energy
                lost += energy * (1 / layer.energy_kept - 1)
        return kept / (kept + lost) if kept else 1.0

    @cached_property
    def report(self) -> MergeReport:
        """What happened to each layer; sign conflicts are measured when this is first read.

        >>> line = merged.report.layers[0]
        >>> line.name, line.status, line.loras, line.ranks_in
        ('unet.mid_block.attentions.0.proj_in', 'merged', 2, (4, 4))
        >>> merged.report.counts()
        {'merged': 2}
        """
        return self._reported(measured=True)

    @cached_property
    def outline(self) -> MergeReport:
        """The report without sign conflicts, which costs nothing."""
        return self._reported(measured=False)

    def _reported(self, measured: bool) -> MergeReport:
        rows = [
            LayerReport(
                name=name,
                status="merged",
                reason=layer.note,
                loras=len(layer.aligned.all_ranks),
                ranks_in=layer.aligned.all_ranks,
                rank_out=_rank_out(layer),
                energy_kept=layer.energy_kept,
                sign_conflict=sign_conflict(layer.aligned, layer.thresholds) if measured else None,
            )
            for name, layer in self._layers.items()
        ]
        for name in self.ia3:
            holders = sum(name in (lora.origin or lora).base_dependent for lora in self.loras)
            rows.append(LayerReport(name, "merged", "factors of (IA)3", holders))
        rows += [LayerReport(name, "passed", weight.why) for name, weight in self.whole_weights.items()]
        return MergeReport.of(rows, self.loras, self.request.blocks)

    @property
    def added_after(self) -> list[str]:
        """A line for each LoRA that was added after the merge of the others."""
        return lines_on_added([lora for i, lora in enumerate(self.loras) if self.request.is_apart(i)])


def _rank_out(layer: MergedLayer) -> int | None:
    if not layer.is_low_rank:
        return None
    if layer.fixed is None:
        return sum(layer.aligned.all_ranks)
    return layer.fixed.rank + (0 if layer.added is None else sum(layer.added.aligned.ranks))
