"""How much of a merge a file keeps, in words; and how much a larger rank would keep.

What is kept is the share of the merge's energy, which is its squared Frobenius norm over all layers: 1 minus
the square of the relative error. A truncation to rank r keeps the squares of the r largest singular values of
a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..extracting import Extracted
from ..merging.merged import Merged
from ..merging.merged_layer import MergedLayer
from ..merging.svd import squared_singular_values

DIFFERENCE = "the difference"
LOW = 0.9  # a file that keeps less is worth a warning
_ALL = 0.9995  # of which one cannot see the rest
_NOISE = 1e-6  # of a share as a float
_STEPS = (2, 4)  # times the rank that lost too much
_DECOMPOSED = 8  # full matrices at most, which are decomposed once more to say what a larger rank would keep


@dataclass(frozen=True, slots=True)
class Kept:
    """``energy`` is the share of the merge that a file of rank ``rank`` keeps.

    ``wider`` is a larger rank with the share that it would keep; ``estimated`` if that was measured on some
    of the layers. Where the ranks were chosen by need, they are from ``smallest`` to ``rank``. ``whole`` is
    what the shares are of.
    """

    energy: float
    rank: int
    wider: tuple[int, float] | None = None
    estimated: bool = False
    smallest: int | None = None
    whole: str = "this merge"

    @property
    def is_low(self) -> bool:
        """True if the file keeps so little that a user should know."""
        return self.energy < LOW

    def sentence(self) -> str:
        """Return what is kept, and what a larger rank would keep if it is little."""
        if self.energy >= _ALL:
            return f"keeps all of {self.whole}, up to rounding"
        if self.smallest not in (None, self.rank):
            return f"ranks {self.smallest} to {self.rank} keep {percent(self.energy)} of {self.whole}"
        text = f"rank {self.rank} keeps {percent(self.energy)} of {self.whole}"
        if self.wider is not None:
            about = "about " if self.estimated else ""
            text += f"; rank {self.wider[0]} would keep {about}{percent(self.wider[1])}"
        return text


def percent(share: float) -> str:
    """Return a share as ``66 %``, or as ``99.2 %`` where the last percent matters; never rounded up."""
    if share >= 0.99:
        return f"{math.floor(1000 * share + _NOISE) / 10:.1f} %"
    return f"{math.floor(100 * share + _NOISE)} %"


def kept_by_extraction(extracted: Extracted, energy: float | None = None, rank: int | None = None) -> Kept:
    """Return what an extraction keeps of the difference of its models, or a file that keeps less of it.

    A larger rank is estimated from the layers whose singular values the extraction measured: it loses the
    same share there of what this rank loses.
    """
    found = extracted.found
    kept = Kept(
        found.held if energy is None else energy, rank or found.ranks[1], estimated=True, whole=DIFFERENCE
    )
    if not kept.is_low or not kept.rank or not found.spectra:
        return kept
    whole = sum(float(squares.sum()) for squares in found.spectra)
    now, *lost = (
        whole - sum(float(squares[: times * kept.rank].sum()) for squares in found.spectra)
        for times in (1, *_STEPS)
    )
    shares = [1 - (1 - kept.energy) * (rest / now if now else 0.0) for rest in lost]
    return replace(kept, wider=_first_enough([times * kept.rank for times in _STEPS], shares))


def _first_enough(ranks: Sequence[int], shares: Sequence[float]) -> tuple[int, float]:
    """The first rank that keeps enough, or the last, with its share."""
    best = next((i for i, share in enumerate(shares) if share >= LOW), len(ranks) - 1)
    return ranks[best], shares[best]


def suggest_rank(merged: Merged, rank: int) -> tuple[tuple[int, float] | None, bool]:
    """Return a larger rank with the share of the merge that it would keep, and whether that is an estimate.

    The rank is twice ``rank``, or four times if twice keeps too little. Layers with factors are measured
    exactly. Where there are full matrices, up to eight of these are, spread over the model.
    """
    request = merged.request
    made_at_once = request.combination_type or request.learned is not None or request.extracted is not None
    if request.settings.space == "factors" or made_at_once:
        return None, False  # a larger rank would be another merge
    layers = [replace(layer, fixed=None, energy_kept=1.0) for layer in map(merged.layer, merged.layers)]
    layers = [layer for layer in layers if layer.template.layout != "vector"]
    full = [layer for layer in layers if not layer.is_low_rank]
    chosen = [layer for layer in layers if layer.is_low_rank] if not full else _spread(full)
    ranks = [times * rank for times in _STEPS]
    kept, whole = [0.0] * len(ranks), 0.0
    for energies, norm in _energies(chosen, ranks):
        whole += norm
        kept = [sum(pair) for pair in zip(kept, energies, strict=True)]
    if not whole:
        return None, False
    shares = [min(energy / whole, 1.0) for energy in kept]
    return _first_enough(ranks, shares), len(chosen) < len(layers)


def _energies(layers: Sequence[MergedLayer], ranks: Sequence[int]) -> Iterator[tuple[list[float], float]]:
    """Yield the energy of each layer at each rank, and its whole energy."""
    for layer in layers:
        value = layer.value()
        if isinstance(value, tuple):
            squares = squared_singular_values(*value)
            yield [float(squares[:rank].sum()) for rank in ranks], float(squares.sum())
        else:
            norm = float(torch.linalg.vector_norm(value, dim=1, dtype=torch.float64).square().sum())
            squares = layer.svd(ranks[-1], value).s.double().square()
            yield [float(squares[:rank].sum()) for rank in ranks], norm


def _spread(layers: list[MergedLayer]) -> list[MergedLayer]:
    """Up to eight of the layers, evenly from the first to the last."""
    places = torch.linspace(0, len(layers) - 1, min(len(layers), _DECOMPOSED)).long().tolist()
    return [layers[place] for place in places]
