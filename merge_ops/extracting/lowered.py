"""One difference as a layer of a LoRA: a truncated SVD of a matrix, or the difference itself of a vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..formats.whole_model import ModelWeight
from ..layer import LowRank
from ..merging.matrix_svd import best_svd
from ..merging.svd import TruncatedSVD
from .difference import Difference, rest_energy
from .options import ExtractOptions

_OUTSTANDING = 2  # times the energy that the first direction of independent entries has
_NOTHING = 2e-7  # singular values below this share of the largest are rounding of float32


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """A layer, and the share of the difference's energy that it holds.

    ``stands_out`` says that one direction holds more than it would of entries that are independent of each
    other, as those of rounding are.
    """

    layer: LowRank
    held: float
    stands_out: bool = False


def lowered(difference: Difference, weight: ModelWeight, options: ExtractOptions) -> Lowered:
    """Return the layer that holds most of a difference, or the share that is asked for."""
    if weight.layout == "vector":
        column = difference.matrix.cpu()
        return Lowered(LowRank(column, torch.ones(1, 1), 1.0, "vector", (), weight.key), 1.0)
    assert weight.layout is not None  # others have no name in a LoRA, and are left out before
    is_turned = weight.layout in ("embedding", "fan_in_fan_out")
    matrix = difference.matrix.T if is_turned else difference.matrix
    kernel = weight.shape[2:]
    svd = best_svd(matrix, options.rank_for(kernel), options.energy)
    rank = max(1, int((svd.s > _NOTHING * svd.s[0]).sum()))
    svd = TruncatedSVD(svd.u[:, :rank], svd.s[:rank], svd.vh[:rank], svd.energy_kept)
    up, down = svd.balanced() if options.clamp is None else svd.clamped(options.clamp)
    lost = rest_energy(matrix, up.to(matrix.device), down.to(matrix.device))
    layer = LowRank(up.cpu().contiguous(), down.cpu().contiguous(), 1.0, weight.layout, kernel, weight.key)
    rows, columns = matrix.shape
    # the largest singular value of independent entries is close to this many times their size
    usual = (math.sqrt(rows) + math.sqrt(columns)) ** 2 * difference.energy / (rows * columns)
    stands_out = float(svd.s[0]) ** 2 > _OUTSTANDING * usual
    return Lowered(layer, max(0.0, 1 - lost / difference.energy), stands_out)
