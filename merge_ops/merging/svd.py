"""Singular value decompositions that never look at more of a delta than they must."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OVERSAMPLE = 8  # how many more directions than the rank are followed
_SMALL = 128  # a matrix that is no longer than this on one side is decomposed as a whole
_MAX_TURNS = 8
_SETTLED = 5e-3  # a turn that lowers the squared error by less than this share ends the iteration


@dataclass(frozen=True, slots=True, eq=False)
class TruncatedSVD:
    """``u @ diag(s) @ vh`` approximates a matrix; ``energy_kept`` is its share of the squared norm."""

    u: Tensor  # (out, k)
    s: Tensor  # (k,), descending
    vh: Tensor  # (k, in)
    energy_kept: float

    def balanced(self) -> tuple[Tensor, Tensor]:
        """``(up, down)`` with the singular values split evenly, which suits half precision."""
        root = self.s.sqrt()
        return self.u * root, root[:, None] * self.vh


def svd_of_product(up: Tensor, down: Tensor, rank: int) -> TruncatedSVD:
    """Rank-``rank`` SVD of ``up @ down`` from QR of both factors and the SVD of an R x R core.

    ``up`` is ``(out, R)``, ``down`` is ``(R, in)``; the product is never formed. The rank is clamped to
    ``min(R, out, in)``.
    """
    return svds_of_products(up[None], down[None], rank)[0]


def svds_of_products(ups: Tensor, downs: Tensor, rank: int) -> list[TruncatedSVD]:
    """``svd_of_product`` of a batch: ``(layers, out, R)`` and ``(layers, R, in)``."""
    ups, downs = _computable(ups), _computable(downs)
    q_up, r_up = torch.linalg.qr(ups)
    q_down, r_down = torch.linalg.qr(downs.mT)
    u, s, vh = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    rank = min(rank, s.shape[-1])
    u, vh = q_up @ u[..., :rank], vh[..., :rank, :] @ q_down.mT
    kept = _energy_shares(s, rank)
    return [
        TruncatedSVD(*parts)
        for parts in zip(u.unbind(), s[:, :rank].unbind(), vh.unbind(), kept, strict=True)
    ]


def svd_of_matrix(matrix: Tensor, rank: int, start: Tensor) -> TruncatedSVD:
    """Rank-``rank`` SVD of a full matrix by subspace iteration (Halko, Martinsson, Tropp 2011, alg. 4.4).

    The rows of ``start`` ``(any, in)`` span a first guess of the row space; ``leading_rows`` gives a good one
    for a matrix that was merged from low-rank deltas, and two or three products with the matrix are then
    enough. They go on, from the left and from the right in turn, while they still lower the squared error.
    Deterministic. ``matrix`` is ``(out, in)``.
    """
    matrix, start = _computable(matrix), _computable(start)
    out, columns = matrix.shape
    rank = min(rank, out, columns)
    width = max(start.shape[0], rank + OVERSAMPLE)
    if max(2 * width, _SMALL) >= min(out, columns):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], _energy_shares(s[None], rank)[0])
    basis = torch.linalg.qr(_widened(start, width).T)[0]  # (in, width), and (out, width) after the next turn
    seen, side, turned = matrix @ basis, matrix, False
    total, captured = _squared_norm(matrix), _leading_energy(seen, rank)
    for _ in range(_MAX_TURNS):
        basis, side, turned = torch.linalg.qr(seen)[0], side.T, not turned
        seen = side @ basis
        before, captured = captured, _leading_energy(seen, rank)
        if captured - before <= _SETTLED * max(total - captured, 0.0):
            break
    q, r = torch.linalg.qr(seen)
    inner, s, outer = torch.linalg.svd(r, full_matrices=False)  # side = q @ inner @ s @ outer @ basis.T
    u, vh = q @ inner[:, :rank], outer[:rank] @ basis.T
    if turned:
        u, vh = vh.T, u.T
    kept = min(_squared_norm(s[None, :rank]) / total, 1.0) if total else 1.0
    return TruncatedSVD(u, s[:rank], vh, kept)


def leading_rows(up: Tensor, down: Tensor, count: int) -> Tensor:
    """Combinations of the rows of ``down`` that hold most of ``up @ down``; ``(min(count, R), in)``.

    Its leading right singular vectors times their singular values, from R x R Gram matrices.
    """
    if count >= down.shape[0]:
        return down
    up, down = _computable(up), _computable(down)
    sizes, directions = torch.linalg.eigh((up.T @ up).to(torch.float64))
    root = sizes.clamp_(min=0).sqrt_()[:, None] * directions.T  # root.T @ root = up.T @ up
    leading = torch.linalg.eigh(root @ (down @ down.T).to(torch.float64) @ root.T)[1][:, -count:]
    rows: Tensor = (leading.T @ root).to(torch.float32) @ down
    return rows


def _computable(matrix: Tensor) -> Tensor:
    """Where QR and float64 exist: Apple's MPS has neither, so its matrices are decomposed on the CPU."""
    return matrix.cpu() if matrix.device.type == "mps" else matrix


def _leading_energy(seen: Tensor, rank: int) -> float:
    """Sum of the ``rank`` largest squared singular values of ``(any, width)``, from a float64 Gram matrix."""
    tall = seen.to(torch.float64)
    return float(torch.linalg.eigvalsh(tall.T @ tall)[-rank:].sum())


def _widened(start: Tensor, width: int) -> Tensor:
    """``start`` with seeded random rows below it, so that it has ``width`` rows."""
    if start.shape[0] == width:
        return start
    generator = torch.Generator().manual_seed(0)
    extra = torch.randn(width - start.shape[0], start.shape[1], generator=generator)
    return torch.cat((start, extra.to(start.device)))


def _squared_norm(matrix: Tensor) -> float:
    """Each row's norm in float32, which is enough for its few thousand entries; their sum in float64."""
    return float(torch.linalg.vector_norm(matrix, dim=1).to(torch.float64).square().sum())


def _energy_shares(s: Tensor, rank: int) -> list[float]:
    """Of each row of singular values, the share of the squares that the first ``rank`` hold."""
    squares = s.cpu().to(torch.float64).square()
    pairs = zip(squares[:, :rank].sum(dim=1).tolist(), squares.sum(dim=1).tolist(), strict=True)
    return [kept / total if total else 1.0 for kept, total in pairs]


def squared_singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Of ``up (out, R) @ down (R, in)``, descending, in float64, from R x R Gram matrices.

    There are ``min(R, out, in)`` of them.
    """
    up, down = _computable(up).double(), _computable(down).double()
    rows, columns = up.shape[0], down.shape[1]
    root = _root_of_gram(up)
    found: Tensor = torch.linalg.eigvalsh(root @ (down @ down.T) @ root.T)
    return found.flip(0).clamp(min=0)[: min(rows, columns)]


def squared_singular_values_of(matrix: Tensor) -> Tensor:
    """Of a full matrix, descending, in float64, from the Gram matrix of its shorter side."""
    matrix = _computable(matrix).double()
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    found: Tensor = torch.linalg.eigvalsh(tall.T @ tall)
    return found.flip(0).clamp(min=0)


def _root_of_gram(tall: Tensor) -> Tensor:
    """``R`` with ``R.T @ R = tall.T @ tall``, for a tall matrix of any rank."""
    sizes, directions = torch.linalg.eigh(tall.T @ tall)
    root: Tensor = sizes.clamp(min=0).sqrt()[:, None] * directions.T
    return root


def product_inner(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Frobenius inner product of two deltas given as ``(up, down)``, in float64, on the factors alone."""
    (up_a, down_a), (up_b, down_b) = a, b
    ups = up_a.double().T @ up_b.double()  # (r_a, r_b)
    downs = down_a.double() @ down_b.double().T  # (r_a, r_b)
    return float((ups * downs).sum())
