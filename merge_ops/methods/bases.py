"""The LoRAs of one layer in a form that does not depend on how they are factored, from R x R matrices alone.

With the thin singular value decompositions ``delta_i = U_i diag(S_i) V_i``, stacked to ``U (out, R)``, ``S
(R,)`` and ``V (R, in)``, methods on cores choose ``core`` in ``merged = U @ core @ V``. Neither U nor V is
ever formed: ``U = up @ left`` and ``V = right @ down``. Directions without energy are zero in all four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# what methods declare that treat LoRAs of every size alike
IGNORES_SIZE = {"weighting": "a LoRA counts by its weight and its directions, not by its size"}

_CUT = 1e-6  # singular values below this share of the largest one are rounding errors of float32 factors


@dataclass(frozen=True, slots=True, eq=False)
class Bases:
    """The canonical form of the LoRAs of one layer; batch dims come first."""

    left: Tensor  # (..., R, R), block diagonal
    sizes: Tensor  # S, (..., R); descending within each LoRA
    right: Tensor  # (..., R, R), block diagonal
    gram_left: Tensor  # U.T @ U
    gram_right: Tensor  # V @ V.T
    weights: Tensor  # (R,): the weight of the LoRA that each direction belongs to

    @property
    def live(self) -> Tensor:
        """Which directions have energy; ``(..., R)`` of bool."""
        return self.sizes > 0

    @property
    def values(self) -> Tensor:
        """The singular values with their weights; ``(..., R)``."""
        return self.sizes * self.weights

    def to_factors(self, core: Tensor) -> Tensor:
        """Return ``K`` with ``up @ K @ down = U @ core @ V``."""
        return self.left @ core @ self.right


def bases_of(gram_up: Tensor, gram_down: Tensor, ranks: Sequence[int], weights: Tensor) -> Bases:
    """Return the canonical form from the Gram matrices of the stacked factors, ``(..., R, R)`` in float64.

    A LoRA of weight 0 has no directions: it is left out.
    """
    left, right = torch.zeros_like(gram_up), torch.zeros_like(gram_up)
    sizes = gram_up.new_zeros(gram_up.shape[:-1])
    start = 0
    for rank, weight in zip(ranks, weights.tolist(), strict=True):
        own = slice(start, start + rank)
        if weight:
            inner = _canonical(gram_up[..., own, own], gram_down[..., own, own])
            left[..., own, own], sizes[..., own], right[..., own, own] = inner
        start += rank
    return Bases(
        left,
        sizes,
        right,
        left.mT @ gram_up @ left,
        right @ gram_down @ right.mT,
        spread(weights, ranks).to(gram_up),
    )


def spread(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """Repeat the value of each LoRA for each of its directions; ``(..., n)`` to ``(..., R)``."""
    return torch.repeat_interleave(values, torch.tensor(ranks, device=values.device), dim=-1)


def selectors(ranks: Sequence[int], like: Tensor) -> Tensor:
    """Return for each LoRA 1 at its own directions and 0 elsewhere; ``(n, R)``."""
    return spread(torch.eye(len(ranks), dtype=like.dtype, device=like.device), ranks)


def gram_of_deltas(gram_up: Tensor, gram_down: Tensor, ranks: Sequence[int]) -> Tensor:
    """Return the Frobenius inner products of the deltas, ``(..., n, n)``, without weights."""
    own = selectors(ranks, gram_up)
    return own @ (gram_up * gram_down) @ own.T


def pseudo_power(gram: Tensor, power: float) -> Tensor:
    """Return a power of a positive semidefinite matrix on its range; ``(..., R, R)``.

    Eigenvalues below ``1e-10`` of the largest one count as zero: such directions are linear combinations of
    others, up to the rounding of the factors.
    """
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-10 * values[..., -1:].clamp(min=1e-300)
    powers = torch.where(kept, values.clamp(min=1e-300) ** power, 0.0)
    result: Tensor = (vectors * powers[..., None, :]) @ vectors.mT
    return result


def _canonical(gram_up: Tensor, gram_down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(left, sizes, right)`` of one LoRA.

    With ``root @ root.T = down @ down.T``, the eigenvectors of ``root.T @ up.T @ up @ root`` belong to the
    squared singular values; no factor is inverted.
    """
    spectrum, directions = torch.linalg.eigh(gram_down)
    root = directions * spectrum.clamp(min=0).sqrt()[..., None, :]
    squares, turn = torch.linalg.eigh(root.mT @ gram_up @ root)
    sizes, turn = squares.clamp(min=0).sqrt().flip(-1), turn.flip(-1)
    live = sizes > _CUT * sizes[..., :1]
    inverse = torch.where(live, 1 / sizes.clamp(min=1e-300), 0.0)
    left = root @ turn * inverse[..., None, :]
    right = inverse.square()[..., None] * (turn.mT @ root.mT @ gram_up)
    return left, torch.where(live, sizes, 0.0), right
