"""The difference between stored and merged deltas: squared Frobenius norms, from factors where possible."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ..lora import LowRank
from ..merging.svd import product_inner
from ..steady import one_thread, total

_SMALL, _LARGE = 2.0**-10, 2.0**6  # between these mean sizes, entries fit into half precision
_TILE = 1 << 17  # entries of a full matrix that are compared at a time: they stay in the processor's cache
_TINY = 1e-30  # a mean square in float32 above this has lost nothing to underflow
_CANCELLED = 1e-6  # below this share of its terms, a squared norm is too inaccurate in float32


@one_thread()
def rounded(up: Tensor, down: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, float, float]:
    """Return the factors in another dtype, and the squared norms of (stored - exact) and exact ``up @ down``.

    Columns of ``up`` and rows of ``down`` with very small or large entries are balanced by powers of two,
    which keeps half precision away from its limits. The difference of the products follows from the
    differences of the factors, which are known exactly, so Gram matrices in float32 are accurate enough.

    Args:
        up: (out, r), in float32 or float64.
        down: (r, in).
        dtype: of the stored factors.
    """
    over, under = up.T @ up, down @ down.T
    terms = (over.diagonal() * under.diagonal()).clamp(min=0).sqrt().sum()
    norm = total(over.to(torch.float64) * under)
    factor = _evening(over.diagonal(), under.diagonal(), up.shape[0], down.shape[1])
    if factor is not None:
        up, down = up * factor, down / factor[:, None]
        under = under / torch.outer(factor, factor)
    stored = up.to(dtype), down.to(dtype)
    if norm <= _CANCELLED * float(terms) ** 2:
        return *stored, *truncation_error((up, down), LowRank(*stored))
    lost = stored[0].to(up) - up
    read = stored[1].to(down)
    if torch.equal(read, down):  # usual for a sum: the scales are on ``up``, and ``down`` is stored unchanged
        error = total((lost.T @ lost).to(torch.float64).mul_(under))
        return *stored, max(error, 0.0), norm
    if factor is not None:
        over = over * torch.outer(factor, factor)
    mixing = _mixing(down.shape[0])
    ups, downs = _gram(over, up, lost), _gram(under, down.T, (read - down).T)
    error = total(ups * (mixing @ downs @ mixing.T))
    return *stored, max(error, 0.0), norm


def _evening(over: Tensor, under: Tensor, rows: int, columns: int) -> Tensor | None:
    """Return a power of two for each column of ``up``, from squared norms; None if all would be 1."""
    usual = (rows * _SMALL**2 <= over) & (over <= rows * _LARGE**2)
    usual &= (columns * _SMALL**2 <= under) & (under <= columns * _LARGE**2)
    usual |= (over == 0) | (under == 0)
    if bool(usual.all()):
        return None
    factor = torch.exp2(((under / over).log2() / 4).round())
    return torch.where(usual, torch.ones_like(over), factor)


@cache
def _mixing(rank: int) -> Tensor:
    """Return M with (up + d_up) @ (down + d_down) - up @ down = [up, d_up] @ M @ [down; d_down]."""
    return torch.kron(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.eye(rank)).to(torch.float64)


def _gram(own: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return the Gram matrix of two tall matrices side by side, (2 r, 2 r) in float64.

    ``own`` is that of the first alone.
    """
    mixed = first.T @ second
    blocks = torch.cat((own, mixed), dim=1), torch.cat((mixed.T, second.T @ second), dim=1)
    return torch.cat(blocks).to(torch.float64)


def truncation_error(exact: Tensor | tuple[Tensor, Tensor], stored: LowRank) -> tuple[float, float]:
    """Return the squared norms of (stored - merged) and of merged, in float64.

    A full matrix given as ``exact`` is overwritten.
    """
    pair = stored.up.float(), stored.down.float()
    if isinstance(exact, tuple):
        norm = product_inner(exact, exact)
        if norm <= 1e-15 * product_inner((exact[0].abs(), exact[1].abs()), (exact[0].abs(), exact[1].abs())):
            return 0.0, 0.0  # the parts cancel, and the rest is rounding
        up = torch.cat((exact[0].double(), -stored.scale * pair[0].double()), dim=1)
        difference = up, torch.cat((exact[1], pair[1]))
        return max(product_inner(difference, difference), 0.0), norm
    height = max(1, _TILE // exact.shape[1])
    error = norm = 0.0
    for rows, up in zip(torch.split(exact, height), torch.split(pair[0], height), strict=True):
        norm += _squared_norm(rows)
        error += _squared_norm(rows.addmm_(up, pair[1], alpha=-stored.scale))
    return error, norm


def _squared_norm(tile: Tensor) -> float:
    """The squared Frobenius norm: of each row in float32, unless its squares need the range of float64."""
    squared = total(torch.linalg.vecdot(tile, tile))
    if _TINY * tile.numel() < squared < math.inf:
        return squared
    return total(torch.linalg.vector_norm(tile, dim=1, dtype=torch.float64).square())
