"""The result of a merge: layers that are low rank, or whose delta is computed when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..adapters import Bound, Ia3
from ..errors import MergeError, ParameterError, did_you_mean
from ..lora import READERS, Layer, Lora, LowRank, WholeWeight
from .align import AlignedLayer
from .report import LayerReport, MergeReport, sign_conflict
from .request import Request, Settings
from .scratch import Scratch
from .spaces import concatenate, merge_deltas
from .svd import OVERSAMPLE, TruncatedSVD, leading_rows, product_inner, svd_of_matrix, svd_of_product


@dataclass(frozen=True, slots=True, eq=False)
class MergedLayer:
    """One merged layer: it holds the LoRAs' factors, and computes from them what is asked for.

    ``fixed`` is set where the result was computed at once: in factor space, and when it was truncated.
    """

    aligned: AlignedLayer
    settings: Settings
    thresholds: tuple[float, ...] | None = None
    fixed: LowRank | None = None
    energy_kept: float = 1.0

    @property
    def is_low_rank(self) -> bool:
        """True if the result has up and down factors."""
        return self.fixed is not None or (self.settings.method.linear and self.aligned.is_low_rank)

    @property
    def template(self) -> Layer:
        """The part that describes the weight best: some kinds do not know the kernel of a convolution."""
        return next((part for part in self.aligned.parts if part.knows_its_kernel), self.aligned.parts[0])

    @property
    def padded_to(self) -> tuple[int, ...]:
        """The shape that the base weight is padded to with zeros; the parts agree on it, or have none."""
        return next((p.padded_to for p in self.aligned.parts if isinstance(p, LowRank) and p.padded_to), ())

    def matrix(self, device: torch.device | None = None, scratch: Scratch | None = None) -> Tensor:
        """Return the merged delta as a float32 matrix ``(out, in)``."""
        pair = self.factors(device)
        if pair is None:
            return merge_deltas(self.aligned, self.settings, self.thresholds, device, scratch)
        return pair[0] @ pair[1]

    def factors(self, device: torch.device | None = None, even: bool = True) -> tuple[Tensor, Tensor] | None:
        """Return float32 ``(up (out, r), down (r, in))`` with every scale folded in; None at full rank.

        Unless ``even``, the scales of a sum are all on ``up``: ``down`` then has the LoRAs' own values, which
        need no rounding in their dtype.
        """
        if self.fixed is not None:
            up, down = (f.to(device, torch.float32) for f in (self.fixed.up, self.fixed.down))
            return up if self.fixed.scale == 1 else up * self.fixed.scale, down
        if self.is_low_rank:
            return concatenate(self.aligned, self.settings.scale, device, even)
        return None

    def value(
        self, device: torch.device | None = None, scratch: Scratch | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the factors if the layer is low rank, else the matrix."""
        return self.factors(device) or self.matrix(device, scratch)

    def svd(self, rank: int, value: Tensor | tuple[Tensor, Tensor]) -> TruncatedSVD:
        """Return the SVD of the layer truncated to ``rank``; ``value`` is what ``value()`` returned."""
        if isinstance(value, tuple):
            return svd_of_product(*value, rank)
        linear = concatenate(self.aligned, self.settings.scale, value.device)
        return svd_of_matrix(value, rank, leading_rows(*linear, rank + OVERSAMPLE))

    def truncated(
        self, rank: int, device: torch.device | None, dtype: torch.dtype, scratch: Scratch | None = None
    ) -> MergedLayer:
        """Return the same layer as one low-rank pair of at most ``rank``, stored where the LoRAs are."""
        return self.kept(self.svd(rank, self.value(device, scratch)), dtype)

    def kept(self, svd: TruncatedSVD, dtype: torch.dtype) -> MergedLayer:
        """Return the same layer as what a truncated SVD of it keeps."""
        clamp = self.settings.svd_clamp
        up, down = svd.balanced() if clamp is None else _clamped(svd, clamp)
        energy = self.energy_kept * svd.energy_kept
        return replace(self.pinned(up, down, dtype), energy_kept=energy)

    def pinned(self, up: Tensor, down: Tensor, dtype: torch.dtype) -> MergedLayer:
        """Return the same layer with its result given as factors, stored where the LoRAs are."""
        home, model = self.template.device, self.template
        fixed = LowRank(up.to(home, dtype), down.to(home, dtype), 1.0, model.layout, model.kernel, model.key)
        return replace(self, fixed=fixed)


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
        return next((part.reader for part in parts if isinstance(part, Bound)), READERS[0])

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
        matrix = layer.matrix(torch.device(device) if device is not None else self._device)
        return layer.template.as_weight(matrix).to(dtype or self._dtype)

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

    def truncated(self, rank: int) -> Merged:
        """Return a new merge with every layer truncated to at most ``rank``, and with its own report.

        Raises:
            ParameterError: if the rank is below 1.
        """
        if rank < 1:
            raise ParameterError(f"rank must be 1 or more, not {rank}")
        layers = {name: layer.truncated(rank, None, torch.float32) for name, layer in self._layers.items()}
        request = replace(self.request, cut_to=rank)
        return Merged(request, self.loras, layers, self.whole_weights, self.ia3, self._device, self._dtype)

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
                loras=len(layer.aligned.parts),
                ranks_in=layer.aligned.ranks,
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


def _rank_out(layer: MergedLayer) -> int | None:
    if layer.fixed is not None:
        return layer.fixed.rank
    return sum(layer.aligned.ranks) if layer.is_low_rank else None


def _clamped(svd: TruncatedSVD, clamp: float) -> tuple[Tensor, Tensor]:
    """PEFT's ``svd_clamp``: all singular values go on ``up``, then both are clipped at a quantile."""
    up, down = svd.u * svd.s, svd.vh
    entries = torch.cat((up.flatten(), down.flatten())).cpu().numpy()
    limit = float(np.quantile(entries, clamp))
    return up.clamp(-limit, limit), down.clamp(-limit, limit)
