"""The difference of one weight in two models, and how it compares with the rounding of their numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MergeError
from ..formats.container import is_finite
from ..formats.whole_model import ModelWeight
from ..room import check_room
from ..steady import total

_TILE = 1 << 22  # entries that are read at a time
# mean squared error of rounding, of numbers whose logarithms are spread evenly, by the square of the step
# between 1 and the next number: the variance of a step is 1/12, and (2**2 - 1) / (2 ln 2) the mean square
_ROUNDING = 1 / 12 / (3 / (2 * math.log(2)))
_ALIKE = 4  # times the expected energy of rounding that may still be nothing else


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """``matrix`` is ``(rows, columns)`` of the weight as stored; energies are squared Frobenius norms."""

    matrix: Tensor
    energy: float
    largest: float  # magnitude of an entry
    rounding: float  # the energy that rounding to the coarser of the two dtypes would have
    same_dtype: bool

    @property
    def is_rounding(self) -> bool:
        """True if the difference is no larger than what rounding to the coarser dtype makes."""
        return 0 < self.energy <= _ALIKE * self.rounding


def difference(
    name: str, tuned: ModelWeight, base: ModelWeight, device: torch.device | None
) -> Difference | None:
    """Return ``tuned - base`` in float32, read a few rows at a time; None if there is no difference.

    Raises:
        MergeError: if one of them holds NaN or infinity, or no memory can hold the difference.
    """
    rows = tuned.shape[0] if tuned.shape else 1
    columns = math.prod(tuned.shape[1:])
    check_room(f"the difference of {name}", rows, columns)
    read_tuned, read_base = tuned.open(), base.open()
    matrix = torch.empty(rows, columns, device=device)
    of_base, largest = 0.0, 0.0
    height = max(1, _TILE // max(columns, 1))
    for start in range(0, rows, height):
        stop = min(start + height, rows)
        one, other = (
            read(start, stop).to(device, torch.float32).reshape(stop - start, columns)
            for read in (read_tuned, read_base)
        )
        for side, tile in (("tuned", one), ("base", other)):
            if not is_finite(tile):
                raise MergeError(f"{name} of the {side} model holds NaN or infinity; use another copy of it")
        of_base += _energy(other)
        torch.sub(one, other, out=matrix[start:stop])
        largest = max(largest, float(matrix[start:stop].abs().max()) if one.numel() else 0.0)
    if not largest:
        return None
    coarser = max((tuned.dtype, base.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    rounding = of_base * _ROUNDING * torch.finfo(coarser).eps ** 2
    return Difference(matrix, _energy(matrix), largest, rounding, tuned.dtype == base.dtype)


def rest_energy(matrix: Tensor, up: Tensor, down: Tensor) -> float:
    """Return the energy of ``matrix - up @ down``, a few rows at a time."""
    height = max(1, _TILE // max(matrix.shape[1], 1))
    pairs = zip(torch.split(matrix, height), torch.split(up, height), strict=True)
    return sum(_energy(tile - part @ down) for tile, part in pairs)


def _energy(matrix: Tensor) -> float:
    return total(torch.linalg.vector_norm(matrix, dim=1).cpu().to(torch.float64).square())
