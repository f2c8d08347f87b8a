"""Singular value decompositions that never look at more of a delta than they must."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_OVERSAMPLE = 8
_MAX_POWER_STEPS = 6
_SETTLED = 5e-4  # a power step that lowers the squared error by less than this share ends the iteration


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
    up, down = _computable(up), _computable(down)
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    rank = min(rank, s.numel())
    return TruncatedSVD(q_up @ u[:, :rank], s[:rank], vh[:rank] @ q_down.T, _energy_share(s, rank))


def svd_of_matrix(matrix: Tensor, rank: int, start: Tensor) -> TruncatedSVD:
    """Rank-``rank`` SVD of a full matrix by subspace iteration (Halko, Martinsson, Tropp 2011, alg. 4.4).

    ``start`` ``(R, in)`` holds the stacked down factors of the LoRAs that the matrix was merged from: the
    range of ``matrix @ start.T`` is already close to the answer, so one or two power steps are enough. Steps
    go on while they still lower the squared error. Deterministic. ``matrix`` is ``(out, in)``.
    """
    matrix, start = _computable(matrix), _computable(start)
    out, columns = matrix.shape
    rank = min(rank, out, columns)
    width = max(start.shape[0], rank) + _OVERSAMPLE
    if 2 * width >= min(out, columns):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], _energy_share(s, rank))
    projected = _project(matrix, matrix @ _widened(start, width).T)[1]
    total, captured = _squared_norm(matrix), _leading_energy(projected, rank)
    for _ in range(_MAX_POWER_STEPS):
        basis, projected = _project(matrix, matrix @ torch.linalg.qr(projected.T)[0])
        before, captured = captured, _leading_energy(projected, rank)
        if captured - before <= _SETTLED * max(total - captured, 0.0):
            break
    u, s, vh = _svd_of_wide(projected)
    kept = min(_squared_norm(s[:rank]) / total, 1.0) if total else 1.0
    return TruncatedSVD(basis @ u[:, :rank], s[:rank], vh[:rank], kept)


def _computable(matrix: Tensor) -> Tensor:
    """Where QR and float64 exist: Apple's MPS has neither, so its matrices are decomposed on the CPU."""
    return matrix.cpu() if matrix.device.type == "mps" else matrix


def _project(matrix: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of ``sample`` ``(out, width)``, and ``matrix`` seen in it ``(width, in)``."""
    basis = torch.linalg.qr(sample)[0]
    return basis, basis.T @ matrix


def _leading_energy(projected: Tensor, rank: int) -> float:
    """Sum of the ``rank`` largest squared singular values, from a float64 Gram matrix."""
    wide = projected.to(torch.float64)
    return float(torch.linalg.eigvalsh(wide @ wide.T)[-rank:].sum())


def _svd_of_wide(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, r = torch.linalg.qr(matrix.T)  # matrix = r.T @ q.T
    u, s, vh = torch.linalg.svd(r.T, full_matrices=False)
    return u, s, vh @ q.T


def _widened(start: Tensor, width: int) -> Tensor:
    """``start`` with seeded random rows below it, so that it has ``width`` rows."""
    generator = torch.Generator().manual_seed(0)
    extra = torch.randn(width - start.shape[0], start.shape[1], generator=generator)
    return torch.cat((start, extra.to(start.device)))


def _squared_norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _energy_share(s: Tensor, rank: int) -> float:
    squares = s.to(torch.float64).square()
    total = float(squares.sum())
    return float(squares[:rank].sum()) / total if total else 1.0


def product_inner(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """Frobenius inner product of two deltas given as ``(up, down)``, in float64, on the factors alone."""
    (up_a, down_a), (up_b, down_b) = a, b
    ups = up_a.double().T @ up_b.double()  # (r_a, r_b)
    downs = down_a.double() @ down_b.double().T  # (r_a, r_b)
    return float((ups * downs).sum())
