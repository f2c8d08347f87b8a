"""The result of a merge: layers that are low rank, or that are made when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..adapters import Bound, Ia3
from ..blocks import BlockStrengths
from ..errors import MergeError, did_you_mean
from ..lora import READERS, Layer, Lora, LowRank, WholeWeight
from ..names.architectures import is_text
from .lineup import factor_of
from .report import LayerReport, MergeReport, sign_conflict
from .scratch import Scratch
from .spaces import AlignedLayer, Settings, concatenated, merge_deltas
from .svd import OVERSAMPLE, TruncatedSVD, leading_rows, product_inner, svd_of_matrix, svd_of_product


@dataclass(frozen=True, slots=True, eq=False)
class MergedLayer:
    """One merged layer. It holds the source factors, and computes from them what is asked for.

    ``fixed`` is set where the result was made at once: merges in factor space, and truncated ones.
    """

    aligned: AlignedLayer
    settings: Settings
    thresholds: tuple[float, ...] | None = None
    fixed: LowRank | None = None
    energy_kept: float = 1.0

    @property
    def is_low_rank(self) -> bool:
        return self.fixed is not None or (self.settings.method.linear and self.aligned.is_low_rank)

    @property
    def template(self) -> Layer:
        """The part that says most about the weight: some kinds do not know the kernel of a convolution."""
        return next((part for part in self.aligned.parts if part.knows_its_kernel), self.aligned.parts[0])

    @property
    def padded_to(self) -> tuple[int, ...]:
        """The shape that the base weight is padded to with zeros; the parts agree on it, or have none."""
        return next((p.padded_to for p in self.aligned.parts if isinstance(p, LowRank) and p.padded_to), ())

    def matrix(self, device: torch.device | None = None, scratch: Scratch | None = None) -> Tensor:
        """The merged delta as a float32 matrix ``(out, in)``."""
        pair = self.factors(device)
        if pair is None:
            return merge_deltas(self.aligned, self.settings, self.thresholds, device, scratch)
        return pair[0] @ pair[1]

    def factors(self, device: torch.device | None = None, even: bool = True) -> tuple[Tensor, Tensor] | None:
        """Float32 ``(up (out, r), down (r, in))`` with every scale folded in; None if it is full rank.

        A sum has its scales on both factors, or not ``even`` on ``up`` alone: ``down`` is then as the LoRAs
        hold it, and needs no rounding in their dtype.
        """
        if self.fixed is not None:
            up, down = (f.to(device, torch.float32) for f in (self.fixed.up, self.fixed.down))
            return up if self.fixed.scale == 1 else up * self.fixed.scale, down
        if self.is_low_rank:
            return concatenated(self.aligned, self.settings.scale, device, even)
        return None

    def value(
        self, device: torch.device | None = None, scratch: Scratch | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The factors where the layer is low rank, else the matrix."""
        return self.factors(device) or self.matrix(device, scratch)

    def svd(self, rank: int, value: Tensor | tuple[Tensor, Tensor]) -> TruncatedSVD:
        """The layer truncated to ``rank``; ``value`` is its factors where it has them, else its matrix."""
        if isinstance(value, tuple):
            return svd_of_product(*value, rank)
        linear = concatenated(self.aligned, self.settings.scale, value.device)
        return svd_of_matrix(value, rank, leading_rows(*linear, rank + OVERSAMPLE))

    def truncated(
        self, rank: int, device: torch.device | None, dtype: torch.dtype, scratch: Scratch | None = None
    ) -> MergedLayer:
        """The same layer as one low-rank pair of at most ``rank``, stored where the LoRAs are."""
        return self.kept(self.svd(rank, self.value(device, scratch)), dtype)

    def kept(self, found: TruncatedSVD, dtype: torch.dtype) -> MergedLayer:
        """The same layer as what a truncated SVD keeps of it."""
        up, down = (
            found.balanced() if self.settings.svd_clamp is None else _clamped(found, self.settings.svd_clamp)
        )
        energy = self.energy_kept * found.energy_kept
        return replace(self.pinned(up, down, dtype), energy_kept=energy)

    def pinned(self, up: Tensor, down: Tensor, dtype: torch.dtype) -> MergedLayer:
        """The same layer with its result given as factors, stored where the LoRAs are."""
        home, model = self.template.device, self.template
        fixed = LowRank(up.to(home, dtype), down.to(home, dtype), 1.0, model.layout, model.kernel, model.key)
        return replace(self, fixed=fixed)


class Merged:
    """What ``merge`` returns: layer names, the delta of each, and a report. Made by ``merge`` only."""

    def __init__(
        self, results: dict[str, MergedLayer], loras: list[Lora], weights: list[float],
        text_weights: list[float], settings: Settings, device: torch.device | None, dtype: torch.dtype,
        combination_type: str | None = None, replaced: dict[str, WholeWeight] | None = None,
        keep: str | None = None,
        blocks: list[BlockStrengths | None] | None = None, scaled: dict[str, Ia3] | None = None,
    ) -> None:  # fmt: skip
        self.layers = results
        self.loras = loras
        self.weights = weights
        self.text_weights = text_weights
        self.settings = settings
        self.combination_type = combination_type
        self.whole_weights = replaced or {}  # weights that take the place of the base model's
        self.ia3 = scaled or {}  # (IA)3 that is merged without the base model: its delta is not known
        self.keep = keep
        self.blocks = blocks or [None] * len(loras)
        self._device = device
        self._dtype = dtype

    @property
    def reader(self) -> str:
        """Whose arithmetic the adapters that depend on the base model follow, one of ``READERS``."""
        parts = (part for lora in self.loras for part in lora.layers.values())
        return next((part.reader for part in parts if isinstance(part, Bound)), READERS[0])

    def layer(self, name: str) -> MergedLayer:
        if name not in self.layers:
            raise MergeError(f"no merged layer is called {name!r}{did_you_mean(name, self.layers)}")
        return self.layers[name]

    def delta(
        self, name: str, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The weight change of one layer, in the shape of its weight: ``(out, in)``, or the conv shape.

        Computed in float32, on ``device`` or where the merge ran; made anew at each call.
        """
        layer = self.layer(name)
        matrix = layer.matrix(torch.device(device) if device is not None else self._device)
        return layer.template.as_weight(matrix).to(dtype or self._dtype)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """``(up (out, r), down (r, in))`` with every scale folded in; None where the layer is full rank.

        A convolution's kernel is folded into the columns of ``down``.
        """
        pair = self.layer(name).factors(self._device)
        return None if pair is None else (pair[0].to(self._dtype), pair[1].to(self._dtype))

    def weight(self, index: int, name: str) -> float:
        """The weight of one of ``loras`` in a layer that it has, without its block strength."""
        return (self.text_weights if is_text(name) else self.weights)[index]

    def block_strength(self, index: int, name: str) -> float:
        """What multiplies the weight of one of ``loras`` in a layer; 0 leaves it out."""
        return factor_of(self.blocks[index], name)

    @cached_property
    def energy_kept(self) -> float:
        """The share of the squared norm of the whole merge that is left; 1 where nothing was truncated."""
        kept = lost = 0.0
        for layer in self.layers.values():
            pair = layer.factors() if layer.energy_kept < 1 or layer.fixed is not None else None
            if pair is not None and layer.energy_kept > 0:
                energy = product_inner(pair, pair)
                kept += energy
                lost += energy * (1 / layer.energy_kept - 1)
        return kept / (kept + lost) if kept else 1.0

    @cached_property
    def report(self) -> MergeReport:
        """What happened to each layer; sign conflicts are measured when this is first read."""
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
            for name, layer in self.layers.items()
        ]
        for name in self.ia3:
            holders = sum(name in (lora.origin or lora).base_dependent for lora in self.loras)
            rows.append(LayerReport(name, "merged", "factors of (IA)3", holders))
        rows += [LayerReport(name, "passed", weight.why) for name, weight in self.whole_weights.items()]
        return MergeReport.of(rows, self.loras, self.blocks)


def _rank_out(layer: MergedLayer) -> int | None:
    if layer.fixed is not None:
        return layer.fixed.rank
    return sum(layer.aligned.ranks) if layer.is_low_rank else None


def _clamped(found: TruncatedSVD, clamp: float) -> tuple[Tensor, Tensor]:
    """PEFT's ``svd_clamp``: all singular values go on ``up``, then both are cut at a quantile."""
    up, down = found.u * found.s, found.vh
    entries = torch.cat((up.flatten(), down.flatten())).cpu().numpy()
    limit = float(np.quantile(entries, clamp))
    return up.clamp(-limit, limit), down.clamp(-limit, limit)
