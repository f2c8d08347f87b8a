"""How far what is stored is from what was merged: squared Frobenius norms, on the factors where possible."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import product_inner
from ..types import LowRank

_CANCELLED = 1e-6  # a squared norm below this share of its terms is known too badly in float32


def rounding_error(up: Tensor, down: Tensor, stored: LowRank) -> tuple[float, float]:
    """Squared norms of (stored - merged) and of merged, for factors that were only rounded to be stored.

    ``up`` and ``down`` are float32 and equal to the merge but for ``stored.scale``. The difference is
    ``d_up @ stored_down + up @ d_down`` with exactly known differences of the factors, so Gram matrices in
    float32 are enough.
    """
    stored_up, stored_down = stored.up.to(up), stored.down.to(down)
    gram_up, gram_down = up.T @ up, down @ down.T
    norm = float((gram_up * gram_down).sum(dtype=torch.float64))
    terms = float((gram_up.diagonal() * gram_down.diagonal()).clamp(min=0).sqrt().sum(dtype=torch.float64))
    if norm <= _CANCELLED * terms**2:
        return truncation_error((up * stored.scale, down), stored)
    d_up, d_down = stored_up - up, stored_down - down
    error = (
        ((d_up.T @ d_up) * (stored_down @ stored_down.T)).sum(dtype=torch.float64)
        + (gram_up * (d_down @ d_down.T)).sum(dtype=torch.float64)
        + 2 * ((d_up.T @ up) * (stored_down @ d_down.T)).sum(dtype=torch.float64)
    )
    square = stored.scale**2
    return max(float(error), 0.0) * square, norm * square


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
