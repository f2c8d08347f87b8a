"""How far what is stored is from what was merged: squared Frobenius norms, on the factors where possible."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..linalg import product_inner
from ..types import LowRank

_CANCELLED = 1e-6  # a squared norm below this share of its terms is known too badly in float32


def rounding_error(up: Tensor, down: Tensor, stored: LowRank) -> tuple[float, float]:
    """Squared norms of (stored - merged) and of merged, for factors that were only rounded to be stored.

    ``up`` and ``down`` are float32 and equal to the merge but for ``stored.scale``. The difference of the
    products is made of differences of the factors, which are known exactly, so Gram matrices in float32 are
    enough.
    """
    rank = down.shape[0]
    # Gram matrices of the merge's factors and of what rounding adds to them
    over = _gram(up, stored.up.to(up) - up)
    under = _gram(down.T, (stored.down.to(down) - down).T)
    norm = float((over[:rank, :rank] * under[:rank, :rank]).sum())
    terms = (over.diagonal()[:rank] * under.diagonal()[:rank]).clamp(min=0).sqrt().sum()
    if norm <= _CANCELLED * float(terms) ** 2:
        return truncation_error((up * stored.scale, down), stored)
    mixing = _mixing(rank)
    error = float((over * (mixing @ under @ mixing.T)).sum())
    return max(error, 0.0) * stored.scale**2, norm * stored.scale**2


@cache
def _mixing(rank: int) -> Tensor:
    """(up + d_up) @ (down + d_down) - up @ down is [up, d_up] @ this @ [down, d_down]."""
    return torch.kron(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.eye(rank)).to(torch.float64)


def _gram(first: Tensor, second: Tensor) -> Tensor:
    """Of the columns of two tall matrices side by side, ``(2 r, 2 r)`` in float64."""
    mixed = first.T @ second
    blocks = torch.cat((first.T @ first, mixed), dim=1), torch.cat((mixed.T, second.T @ second), dim=1)
    return torch.cat(blocks).to(torch.float64)


def truncation_error(exact: Tensor | tuple[Tensor, Tensor], stored: LowRank) -> tuple[float, float]:
    """Squared norms of (stored - merged) and of merged, in float64; a matrix is used up."""
    pair = stored.up.float(), stored.down.float()
    if isinstance(exact, tuple):
        norm = product_inner(exact, exact)
        if norm <= 1e-15 * product_inner((exact[0].abs(), exact[1].abs()), (exact[0].abs(), exact[1].abs())):
            return 0.0, 0.0  # the parts cancel, and what is left is rounding
        up = torch.cat((exact[0].double(), -stored.scale * pair[0].double()), dim=1)
        difference = up, torch.cat((exact[1], pair[1]))
        return max(product_inner(difference, difference), 0.0), norm
    norm = float(torch.linalg.vector_norm(exact, dtype=torch.float64)) ** 2
    rest = exact.addmm_(pair[0], pair[1], alpha=-stored.scale)
    return float(torch.linalg.vector_norm(rest, dtype=torch.float64)) ** 2, norm
