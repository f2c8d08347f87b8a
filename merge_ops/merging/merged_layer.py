"""One merged layer: low rank, or a delta that is computed when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from ..errors import MergeError
from ..lora import Layer, LowRank
from ..room import check_room
from ..steady import one_thread
from .align import AlignedLayer
from .cores import factors_of_coordinates, factors_of_core
from .matrix_svd import exact_svd_of_matrix, leading_rows, svd_of_matrix, tracked
from .request import Settings
from .scratch import Scratch
from .spaces import concatenate, merge_deltas, merged_tiles
from .svd import TruncatedSVD, squared_singular_values, squared_singular_values_of, svd_of_product


@dataclass(frozen=True, slots=True, eq=False)
class MergedLayer:
    """One merged layer: it holds the LoRAs' factors, and computes from them what is asked for.

    ``figures`` are what an entrywise method measured on the whole layer, ``core`` is the R x R matrix of a
    method on cores. ``fixed`` is set where the result was computed at once: in factor space, in shared
    coordinates, and when it was truncated.
    """

    aligned: AlignedLayer
    settings: Settings
    figures: tuple[float, ...] | None = None
    fixed: LowRank | None = None
    energy_kept: float = 1.0
    core: Tensor | None = None  # (R, R) in float64, on the CPU
    note: str = ""  # for the report
    is_whole: bool = False  # ``fixed`` holds the LoRAs that are added after the merge, too

    @property
    def is_low_rank(self) -> bool:
        """True if the result has up and down factors."""
        method = self.settings.method
        of_factors = method.linear or method.kind != "entrywise"
        own = self.fixed is not None or (of_factors and self.aligned.is_low_rank)
        return own and (self.added is None or self.added.is_low_rank)

    @property
    def added(self) -> MergedLayer | None:
        """The sum of the LoRAs that are added after the merge, as a layer of its own."""
        if self.is_whole or self.aligned.added is None:
            return None
        return MergedLayer(self.aligned.added, self.settings.of_sum())

    @property
    def without_added(self) -> MergedLayer:
        """The merge of the other LoRAs alone."""
        return replace(self, aligned=replace(self.aligned, added=None))

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """The magnitude below which each LoRA's entries are dropped; None if the method drops none so."""
        if self.figures is None or "thresholds" not in self.settings.method.supplied:
            return None
        return self.figures[: len(self.aligned.parts)]

    @property
    def template(self) -> Layer:
        """The part that describes the weight best: some kinds do not know the kernel of a convolution."""
        parts = self.aligned.parts
        return next((part for part in parts if part.padded_to), None) or next(
            (part for part in parts if part.knows_its_kernel), parts[0]
        )

    @property
    def padded_to(self) -> tuple[int, ...]:
        """The shape that the base weight is padded to with zeros; the parts agree on it, or have none."""
        return next((part.padded_to for part in self.aligned.parts if part.padded_to), ())

    def matrix(self, device: torch.device | None = None, scratch: Scratch | None = None) -> Tensor:
        """Return the merged delta as a float32 matrix ``(out, in)``; refused if no memory can hold it."""
        check_room(f"the delta of {self.aligned.name}", *self.template.matrix_shape)
        pair, added = self._product(device), self.added
        if pair is None:
            own = merge_deltas(self.aligned, self.settings, self.figures, device, scratch)
        else:
            own = pair[0] @ pair[1]
        return own if added is None else own.add_(added.matrix(device))

    @property
    def is_sum(self) -> bool:
        """True if the delta is the sum of products of the LoRAs' own factors, one for each."""
        return self.fixed is None and self.settings.method.linear and self.aligned.is_low_rank

    def addends(self, device: torch.device | None = None) -> list[tuple[int, Callable[[], Tensor]]]:
        """Return ``(place of the LoRA in the list, function that makes a float32 matrix)``.

        The sum of the matrices is the delta. Of a sum there is one for each LoRA, in the order of the list.
        Added to a weight one after the other they give the bits of a program that loads the LoRAs one after
        the other, with the scale multiplied in after the factors, as ComfyUI does. Anything else is one
        matrix, behind the last LoRA.
        """
        if self.added is not None:
            behind = [(place + self.aligned.count + 1, make) for place, make in self.added.addends(device)]
            return [*self.without_added.addends(device), *behind]
        if not self.is_sum:
            return [(self.aligned.count, partial(self.matrix, device))]
        parts, weights = self.aligned.low_rank()
        listed = sorted(zip(self.aligned.indices, parts, weights, strict=True), key=itemgetter(0))
        scale = self.settings.scale
        return [
            (place, partial(_product_of, self.aligned.name, part, weight * scale, device))
            for place, part, weight in listed
        ]

    def tiles(self, device: torch.device, scratch: Scratch | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(first row, rows of the merged delta)`` over all rows; a tile may be used up."""
        scratch, scale = scratch or Scratch(), self.settings.scale
        if self.added is not None:
            rest = self.added.matrix(device)
            for start, tile in self.without_added.tiles(device, scratch):
                yield start, tile.add_(rest[start : start + tile.shape[0]])
            return
        pair = self._product(device)
        if pair is None:
            for start, tile in merged_tiles(self.aligned, self.settings, self.figures, device, scratch):
                yield start, tile if scale == 1 else tile.mul_(scale)
            return
        up, down = pair
        height = scratch.tile_height(down.shape[1], device)
        for start in range(0, up.shape[0], height):
            yield start, up[start : start + height] @ down

    def factors(self, device: torch.device | None = None, even: bool = True) -> tuple[Tensor, Tensor] | None:
        """Return float32 ``(up (out, r), down (r, in))`` with every scale folded in; None at full rank.

        Unless ``even``, the scales of a sum are all on ``up``: ``down`` then has the LoRAs' own values, which
        need no rounding in their dtype.
        """
        if not self.is_low_rank:
            return None
        pair, added = self._product(device, even), self.added
        rest = None if added is None else added.factors(device, even)
        if pair is None or rest is None:
            return pair
        return torch.cat((pair[0], rest[0]), dim=1), torch.cat((pair[1], rest[1]))

    def _product(self, device: torch.device | None, even: bool = True) -> tuple[Tensor, Tensor] | None:
        """The factors, even if they are larger than the delta; None where it is made entry by entry.

        Without what is added after the merge.
        """
        method = self.settings.method
        if self.fixed is not None:
            up, down = (f.to(device, torch.float32) for f in (self.fixed.up, self.fixed.down))
            return up if self.fixed.scale == 1 else up * self.fixed.scale, down
        if method.kind == "core":
            return factors_of_core(self.aligned, self.settings, self.core, device)
        if method.kind == "coordinates":
            return factors_of_coordinates(self.aligned, self.settings, device)
        if method.linear and self.aligned.is_low_rank:
            return concatenate(self.aligned, self.settings.scale, device, even)
        return None

    def value(
        self, device: torch.device | None = None, scratch: Scratch | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the factors if the layer is low rank, else the matrix."""
        return self.factors(device) or self.matrix(device, scratch)

    def svd(self, rank: int, value: Tensor | tuple[Tensor, Tensor], exactly: bool = False) -> TruncatedSVD:
        """Return the SVD of the layer truncated to ``rank``; ``value`` is what ``value()`` returned.

        Unless ``exactly``, that of a full matrix may miss a little of what the rank could keep.
        """
        self._refuse_nan(value)
        if isinstance(value, tuple):
            return svd_of_product(*value, rank)
        if exactly:
            return exact_svd_of_matrix(value, rank)
        ups, downs = zip(
            *(
                concatenate(each, self.settings.scale, value.device)
                for each in (self.aligned, None if self.added is None else self.added.aligned)
                if each is not None
            ),
            strict=True,
        )
        leading = leading_rows(torch.cat(ups, dim=1), torch.cat(downs), tracked(rank))
        return svd_of_matrix(value, rank, leading)

    def squared_singular_values(self, device: torch.device | None = None) -> Tensor:
        """Return the squared singular values of the layer, descending, in float64.

        Raises:
            MergeError: if the layer contains NaN or infinity.
        """
        value = self.value(device)
        self._refuse_nan(value)
        with one_thread():
            if isinstance(value, tuple):
                return squared_singular_values(*value)
            return squared_singular_values_of(value)

    def _refuse_nan(self, value: Tensor | tuple[Tensor, Tensor]) -> None:
        for part in value if isinstance(value, tuple) else (value,):
            if not math.isfinite(float(part.sum())) and not bool(part.isfinite().all()):
                raise MergeError(
                    f"{self.aligned.name} contains NaN or infinity once it is merged; use smaller strengths, "
                    "or a larger density"
                )

    def truncated(
        self, rank: int, device: torch.device | None, dtype: torch.dtype, scratch: Scratch | None = None
    ) -> MergedLayer:
        """Return the same layer as one low-rank pair of at most ``rank``, stored where the LoRAs are."""
        return self.kept(self.svd(rank, self.value(device, scratch)), dtype)

    def kept(self, svd: TruncatedSVD, dtype: torch.dtype) -> MergedLayer:
        """Return the same layer as what a truncated SVD of it keeps."""
        clamp = self.settings.svd_clamp
        up, down = svd.balanced() if clamp is None else svd.clamped(clamp)
        energy = self.energy_kept * svd.energy_kept
        return replace(self.pinned(up, down, dtype), energy_kept=energy, is_whole=True)

    def cut_exactly(self, rank: int, device: torch.device | None) -> MergedLayer:
        """Return the same layer at a rank that was chosen by its singular values; unchanged if it fits."""
        value = self.factors(device, even=False) or self.matrix(device)  # as saving does
        if self.template.layout == "vector" or (isinstance(value, tuple) and value[1].shape[0] <= rank):
            return self
        svd = self.svd(rank, value, exactly=True)
        pinned = self.pinned(*svd.balanced(), torch.float32)
        return replace(pinned, energy_kept=self.energy_kept * svd.energy_kept, is_whole=True)

    def pinned(self, up: Tensor, down: Tensor, dtype: torch.dtype) -> MergedLayer:
        """Return the same layer with its result given as factors, stored where the LoRAs are."""
        home, model = self.template.device, self.template
        fixed = LowRank(
            up.to(home, dtype),
            down.to(home, dtype),
            1.0,
            model.layout,
            model.kernel,
            model.key,
            self.padded_to,
        )
        return replace(self, fixed=fixed)


def _product_of(name: str, part: LowRank, weight: float, device: torch.device | None) -> Tensor:
    """``weight * scale * (up @ down)``, multiplied in this order."""
    check_room(f"the delta of {name}", *part.matrix_shape)
    up, down = (factor.to(device, torch.float32) for factor in (part.up, part.down))
    return (up @ down).mul_(weight * part.scale)
