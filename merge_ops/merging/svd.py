"""Truncated singular value decompositions of low-rank products, which are never formed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..steady import one_thread, product, total

GRAM_ROWS = 256  # of a matrix that are multiplied in float64 at a time
_CANCELLED = 3e4  # times a sum that its terms may be: squared, times float64's rounding, it is float32's


@dataclass(frozen=True, slots=True, eq=False)
class TruncatedSVD:
    """``u @ diag(s) @ vh`` approximates a matrix; ``energy_kept`` is its share of the squared norm."""

    u: Tensor  # (out, k)
    s: Tensor  # (k,), descending
    vh: Tensor  # (k, in)
    energy_kept: float

    def balanced(self) -> tuple[Tensor, Tensor]:
        """Return ``(up, down)`` with the singular values split evenly, which suits half precision."""
        root = self.s.sqrt()
        return self.u * root, root[:, None] * self.vh

    def clamped(self, quantile: float) -> tuple[Tensor, Tensor]:
        """Return ``(up, down)`` with the singular values on ``up``, clipped at one quantile of all entries.

        PEFT's ``svd_clamp`` and kohya's ``clamp_quantile``.
        """
        up, down = self.u * self.s, self.vh
        entries = torch.cat((up.flatten(), down.flatten())).cpu().numpy()
        limit = float(np.quantile(entries, quantile))
        return up.clamp(-limit, limit), down.clamp(-limit, limit)


@one_thread()
def svd_of_product(up: Tensor, down: Tensor, rank: int) -> TruncatedSVD:
    """Return the rank-``rank`` SVD of ``up @ down``; the product is never formed.

    ``up`` is ``(out, R)``, ``down`` is ``(R, in)``. The rank is clamped to ``min(R, out, in)``. The SVD comes
    from Gram matrices in float64, or from QR of both factors where columns of ``up`` or rows of ``down``
    nearly depend on each other, or the rank reaches singular values that are next to nothing.
    """
    up, down = computable(up), computable(down)
    found, share, accurate = _by_grams(up, down, rank)
    return TruncatedSVD(*found, float(share)) if bool(accurate) else _by_qr(up, down, rank)


@one_thread()
def svds_of_products(ups: Tensor, downs: Tensor, rank: int) -> list[TruncatedSVD]:
    """Return ``svd_of_product`` of each pair in a batch: ``(layers, out, R)`` and ``(layers, R, in)``."""
    ups, downs = computable(ups), computable(downs)
    found, shares, accurate = _by_grams(ups, downs, rank)
    rows = zip(*(part.unbind() for part in found), shares.tolist(), strict=True)
    return [
        TruncatedSVD(*row) if good else _by_qr(ups[i], downs[i], rank)
        for i, (row, good) in enumerate(zip(rows, accurate.tolist(), strict=True))
    ]


def _by_grams(up: Tensor, down: Tensor, rank: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """``(u, s, vh)`` of one pair or of a batch, the share of the energy, and whether all that is accurate.

    With ``down @ down.T = root @ root.T``, the rows of ``inverse(root) @ down`` are orthonormal, so ``up @
    root`` has the left singular vectors and the singular values of the product.
    """
    rank = min(rank, *up.shape[-2:], down.shape[-1])
    up, down = up.double(), down.double()
    over, under = up.mT @ up, down @ down.mT  # (..., R, R)
    root, failed = torch.linalg.cholesky_ex(under)
    core = (root.mT @ over @ root).nan_to_num_().neg_()  # so that the largest singular value comes first
    values, v = torch.linalg.eigh(core)
    squares, v = values.neg_().clamp_(min=0), v[..., :rank]
    s = squares[..., :rank].sqrt()
    on_up, on_down = root @ v / s[..., None, :], torch.linalg.solve_triangular(root.mT, v, upper=True)
    share = (squares[..., :rank].sum(-1) / squares.sum(-1)).clamp_(max=1)
    accurate = (failed == 0) & _is_accurate(over, under, s[..., -1], on_down)
    return ((up @ on_up).float(), s.float(), (on_down.mT @ down).float()), share, accurate


def _is_accurate(over: Tensor, under: Tensor, smallest: Tensor, on_down: Tensor) -> Tensor:
    """Whether rounding of the Gram matrices is small in every singular vector, which it is divided into.

    ``smallest`` is the smallest singular value, ``on_down (..., R, rank)`` how rows of ``down`` are mixed.
    Rounding grows with the square of what is compared with ``_CANCELLED``. False for NaN.
    """
    columns, rows = (each.diagonal(dim1=-2, dim2=-1).sqrt()[..., None, :] for each in (over, under))
    terms, mixed = (columns @ rows.mT)[..., 0, 0], rows @ on_down.abs()
    return (terms < _CANCELLED * smallest) & (mixed.amax((-2, -1)) < _CANCELLED)


def _by_qr(up: Tensor, down: Tensor, rank: int) -> TruncatedSVD:
    """By QR of both factors and the SVD of an R x R core."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    rank = min(rank, s.numel())
    return TruncatedSVD(q_up @ u[:, :rank], s[:rank], vh[:rank] @ q_down.T, energy_share(s, rank))


def computable(matrix: Tensor) -> Tensor:
    """The matrix on a device with QR and float64, which Apple's MPS and some XPU lack: else on the CPU."""
    return matrix if matrix.device.type in ("cpu", "cuda") else matrix.cpu()


def energy_share(s: Tensor, rank: int) -> float:
    """Return the share of the squares of singular values ``(k,)`` in the first ``rank``; 1 if all are 0."""
    squares = s.cpu().to(torch.float64).square()
    whole = float(squares.sum())
    return float(squares[:rank].sum()) / whole if whole else 1.0


def gram_of(tall: Tensor) -> Tensor:
    """``tall.T @ tall`` in float64, of a few rows at a time: a copy of all would take twice its memory."""
    found = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for rows in torch.split(tall, GRAM_ROWS):
        exact = rows.to(torch.float64)
        found += product(exact.T.contiguous(), exact)
    return found


def squared_singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Return the squared singular values of ``up (out, R) @ down (R, in)``, from R x R Gram matrices.

    ``(min(R, out, in),)``, descending, in float64.
    """
    up, down = computable(up).double(), computable(down).double()
    rows, columns = up.shape[0], down.shape[1]
    root = _root_of_gram(up)
    values: Tensor = torch.linalg.eigvalsh(root @ (down @ down.T) @ root.T)
    return values.flip(0).clamp(min=0)[: min(rows, columns)]


@one_thread()
def squared_singular_values_of(matrix: Tensor) -> Tensor:
    """Return the squared singular values of a full matrix, descending, in float64, from its Gram matrix."""
    matrix = computable(matrix)
    values: Tensor = torch.linalg.eigvalsh(
        gram_of(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)
    )
    return values.flip(0).clamp(min=0)


def _root_of_gram(tall: Tensor) -> Tensor:
    """``R`` with ``R.T @ R = tall.T @ tall``, for a tall matrix of any rank."""
    sizes, directions = torch.linalg.eigh(tall.T @ tall)
    root: Tensor = sizes.clamp(min=0).sqrt()[:, None] * directions.T
    return root


@one_thread()
def product_inner(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Return the Frobenius inner product of two deltas given as ``(up, down)``, in float64."""
    (up_a, down_a), (up_b, down_b) = a, b
    ups = up_a.double().T @ up_b.double()  # (r_a, r_b)
    downs = down_a.double() @ down_b.double().T  # (r_a, r_b)
    return total(ups * downs)
