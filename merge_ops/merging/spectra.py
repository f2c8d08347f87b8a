"""The singular values of every layer of a merge, and the ranks that a rule chooses by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import ParameterError
from ..progress import Progress
from ..steady import total
from .merged_layer import MergedLayer
from .rank_rule import RankRule

_ROUNDING = 1e-12  # of the energy of all, in float64


@dataclass(frozen=True, slots=True, eq=False)
class LayerSpectrum:
    """``squares`` are the squared singular values ``(min(R, out, in),)``, descending, in float64.

    ``cost`` is how many numbers one more rank adds to a file: out + in.
    """

    squares: Tensor
    cost: int
    is_conv: bool

    def cut(self, rule: RankRule) -> Tensor:
        """Return the squares that the rule's limit leaves."""
        return self.squares[: rule.largest(self.is_conv)]

    def share(self, rank: int) -> float:
        """Return the share of the layer's energy that a rank keeps."""
        whole = float(self.squares.sum())
        return float(self.squares[:rank].sum()) / whole if whole else 1.0


@dataclass(frozen=True, eq=False)
class Spectra:
    """``layers`` by name; ``fixed`` is the energy of biases and weights of norms, which are kept whole."""

    layers: dict[str, LayerSpectrum]
    fixed: float

    @cached_property
    def energy(self) -> float:
        """The squared Frobenius norm of all layers."""
        return self.fixed + sum(float(layer.squares.sum()) for layer in self.layers.values())

    def kept(self, ranks: Mapping[str, int]) -> float:
        """Return the share of the energy of all layers that these ranks keep."""
        left = sum(float(layer.squares[: ranks[name]].sum()) for name, layer in self.layers.items())
        return (self.fixed + left) / self.energy if self.energy else 1.0

    def ranks(self, rule: RankRule) -> dict[str, int]:
        """Return the rank of each layer that is a matrix, by name.

        Raises:
            ParameterError: for a size, which is one of a file; ``merge_ops.save`` takes it.
        """
        if rule.size is not None:
            raise ParameterError("a size is that of a file, so give this rule to save")
        if rule.energy is not None and not rule.per_layer:
            return self._within_energy(rule)
        largest = max((float(layer.squares[0]) for layer in self.layers.values()), default=0.0)
        ranks = {}
        for name, layer in self.layers.items():
            squares = layer.squares
            if rule.energy is not None:
                rank = _reaching(squares, rule.energy)
            elif rule.cumulative is not None:
                rank = _reaching(squares.sqrt(), rule.cumulative)
            elif rule.ratio is not None:
                top = float(squares[0]) if rule.per_layer else largest
                rank = int((squares > top / rule.ratio**2).sum())
            else:
                rank = len(squares)
            ranks[name] = max(1, min(rank, len(layer.cut(rule))))
        return ranks

    def shares(self, rule: RankRule) -> list[float]:
        """Return every energy at which a rule like this one keeps one singular value more, ascending.

        The first is that of rank 1 everywhere. ``ranks`` chooses the same for the same share again.
        """
        if rule.per_layer:
            cuts = [(layer.cut(rule), layer.squares.sum()) for layer in self.layers.values()]
            found = [share for cut, whole in cuts if whole > 0 for share in (cut.cumsum(0) / whole).tolist()]
        else:
            found = (self._in_order(rule)[2] / self.energy).tolist() if self.energy else []
        return sorted({min(share, 1.0) for share in found if share > 0} or {1.0})

    def _within_energy(self, rule: RankRule) -> dict[str, int]:
        names, owners, kept = self._in_order(rule)
        needed = (rule.energy or 1.0) * self.energy - _ROUNDING * self.energy
        count = min(int(torch.searchsorted(kept, needed)), len(owners))
        more = torch.bincount(owners[:count], minlength=len(names)).tolist()
        return {name: 1 + added for name, added in zip(names, more, strict=True)}

    def _in_order(self, rule: RankRule) -> tuple[list[str], Tensor, Tensor]:
        """All layers, the layer of each further singular value in the order of energy per byte, and energies.

        Entry ``i`` of the energies ``(n + 1,)`` is that of the first ``i`` further values.
        """
        names = list(self.layers)
        cuts = [layer.cut(rule) for layer in self.layers.values()]
        gains = torch.cat([cut[1:] for cut in cuts]) if cuts else torch.zeros(0, dtype=torch.float64)
        costs = [layer.cost for layer in self.layers.values()]
        owners = torch.repeat_interleave(torch.tensor([len(cut) - 1 for cut in cuts], dtype=torch.long))
        worth = gains / torch.tensor(costs, dtype=torch.float64)[owners]
        order = torch.sort(worth, descending=True, stable=True).indices
        first = self.fixed + sum(float(cut[0]) for cut in cuts)
        steps = torch.cat((torch.tensor([first], dtype=torch.float64), gains[order]))
        return names, owners[order], steps.cumsum(0)


def measure_spectra(
    layers: Mapping[str, MergedLayer], device: torch.device | None, progress: Progress | None = None
) -> Spectra:
    """Measure every layer: from its factors where it has some, else from the Gram matrix of its delta.

    Raises:
        MergeError: if a layer contains NaN or infinity.
    """
    found: dict[str, LayerSpectrum] = {}
    fixed = 0.0
    for done, (name, layer) in enumerate(layers.items()):
        if progress is not None:
            progress(done, len(layers), name)
        if layer.template.layout == "vector":
            fixed += total(layer.matrix(device).double().square())
            continue
        squares = layer.squared_singular_values(device).cpu()
        found[name] = LayerSpectrum(squares, sum(layer.template.matrix_shape), bool(layer.template.kernel))
    return Spectra(found, fixed)


def _reaching(values: Tensor, share: float) -> int:
    """Return how many of the values, from the first on, reach this share of their sum."""
    sums = values.cumsum(0)
    return int(torch.searchsorted(sums, (share - _ROUNDING) * sums[-1])) + 1
