"""Truncated singular value decompositions that compute no more of a delta than they must."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..steady import one_thread, product, total

OVERSAMPLE = 8  # directions tracked in addition to the rank
_SMALL = 128  # a matrix with a side up to this long is decomposed in full
_FEW = 64  # directions that are tried before all of them are computed
_ENOUGH = 0.9  # of the energy, where the error of subspace iteration is below 0.2 % of all
_GRAM_ROWS = 256  # of a matrix that are multiplied in float64 at a time
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


def svd_of_product(up: Tensor, down: Tensor, rank: int) -> TruncatedSVD:
    """Return the rank-``rank`` SVD of ``up @ down``, from QR of both factors and the SVD of an R x R core.

    ``up`` is ``(out, R)``, ``down`` is ``(R, in)``; the product is never formed. The rank is clamped to
    ``min(R, out, in)``.
    """
    return svds_of_products(up[None], down[None], rank)[0]


@one_thread()
def svds_of_products(ups: Tensor, downs: Tensor, rank: int) -> list[TruncatedSVD]:
    """Return ``svd_of_product`` of each pair in a batch: ``(layers, out, R)`` and ``(layers, R, in)``."""
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


@one_thread()
def svd_of_matrix(matrix: Tensor, rank: int, start: Tensor) -> TruncatedSVD:
    """Return the rank-``rank`` SVD of a full matrix by subspace iteration (Halko et al. 2011, alg. 4.4).

    The rows of ``start`` ``(any, in)`` span a first guess of the row space; ``leading_rows`` gives a good one
    for a matrix that was merged from low-rank deltas, so that two or three products with the matrix are
    enough. They alternate between left and right for as long as they lower the squared error. Deterministic.
    ``matrix`` is ``(out, in)``.
    """
    matrix, start = _computable(matrix), _computable(start)
    out, columns = matrix.shape
    rank = min(rank, out, columns)
    width = max(start.shape[0], rank + OVERSAMPLE)
    if max(2 * width, _SMALL) >= min(out, columns):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], _energy_shares(s[None], rank)[0])
    basis = torch.linalg.qr(_widened(start, width).T)[0]  # (in, width), and (out, width) after the next turn
    seen, side, turned = product(matrix, basis), matrix, False
    energy, captured = _squared_norm(matrix), _leading_energy(seen, rank)
    for _ in range(_MAX_TURNS):
        basis, side, turned = torch.linalg.qr(seen)[0], side.T, not turned
        seen = product(side, basis)
        before, captured = captured, _leading_energy(seen, rank)
        if captured - before <= _SETTLED * max(energy - captured, 0.0):
            break
    q, r = torch.linalg.qr(seen)
    inner, s, outer = torch.linalg.svd(r, full_matrices=False)  # side = q @ inner @ s @ outer @ basis.T
    u, vh = q @ inner[:, :rank], outer[:rank] @ basis.T
    if turned:
        u, vh = vh.T, u.T
    kept = min(_squared_norm(s[None, :rank]) / energy, 1.0) if energy else 1.0
    return TruncatedSVD(u, s[:rank], vh, kept)


@one_thread()
def exact_svd_of_matrix(matrix: Tensor, rank: int) -> TruncatedSVD:
    """Return the rank-``rank`` SVD of a full matrix ``(out, in)`` from its Gram matrix in float64.

    It keeps all that the rank can keep, and takes several times as long as ``svd_of_matrix``.
    """
    return _from_gram(_computable(matrix), rank, None)


@one_thread()
def best_svd(matrix: Tensor, rank: int | None = None, energy: float | None = None) -> TruncatedSVD:
    """Return the truncated SVD of a full matrix of which nothing is known, with the least error there is.

    With ``energy``, a share of the squared Frobenius norm, it has the smallest rank that keeps it, or
    ``rank`` if that is not enough. Subspace iteration misses up to 2 % of what the best truncation loses, so
    it is used where next to nothing is lost. Elsewhere the result comes from the float64 Gram matrix of the
    shorter side. Deterministic. ``matrix`` is ``(out, in)``.
    """
    matrix = _computable(matrix)
    shorter = min(matrix.shape)
    most = shorter if rank is None else min(rank, shorter)
    tried = most if energy is None else min(most, _FEW)
    if tried < shorter // 8:
        few = svd_of_matrix(matrix, tried, matrix.new_empty(0, matrix.shape[1]))
        if few.energy_kept >= (_ENOUGH if tried == most or energy is None else energy):
            return few if energy is None else _cut(few, energy)
    return _from_gram(matrix, most, energy)


def _from_gram(matrix: Tensor, rank: int, energy: float | None) -> TruncatedSVD:
    """The SVD at a rank, or at the smallest one up to it that keeps a share of the energy."""
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix
    squares, directions = torch.linalg.eigh(_gram(tall))
    squares = squares.flip(0).clamp(min=0)
    kept = rank if energy is None else min(_rank_of(squares, energy, float(squares.sum())), rank)
    s, directions = squares[:kept].sqrt(), directions[:, -kept:].flip(1)
    others = torch.cat([product(rows.to(directions.dtype), directions) for rows in _split(tall)])
    others /= torch.where(s > 0, s, 1.0)
    u, v = (directions, others) if wide else (others, directions)
    share = _energy_shares(squares.sqrt()[None], kept)[0]
    return TruncatedSVD(u.float(), s.float(), v.T.float(), share)


def _gram(tall: Tensor) -> Tensor:
    """``tall.T @ tall`` in float64, of a few rows at a time: a copy of all would take twice its memory."""
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for rows in _split(tall):
        exact = rows.to(torch.float64)
        gram += product(exact.T.contiguous(), exact)
    return gram


def _split(tall: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tall, _GRAM_ROWS)


def _rank_of(squares: Tensor, energy: float, whole: float) -> int:
    """The smallest rank, of 1 or more, whose first squares are a share of the whole."""
    reached = torch.cumsum(squares.cpu().double(), 0) >= energy * whole
    return int(reached.long().argmax()) + 1 if bool(reached.any()) else squares.numel()


def _cut(svd: TruncatedSVD, energy: float) -> TruncatedSVD:
    """The same SVD at the smallest rank that keeps a share of the energy."""
    squares = svd.s.double().square()
    held = float(squares.sum())
    whole = held / svd.energy_kept if svd.energy_kept else held
    rank = _rank_of(squares, energy, whole)
    kept = float(squares[:rank].sum()) / whole if whole else 1.0
    return TruncatedSVD(svd.u[:, :rank], svd.s[:rank], svd.vh[:rank], min(kept, 1.0))


@one_thread()
def leading_rows(up: Tensor, down: Tensor, count: int) -> Tensor:
    """Return combinations of the rows of ``down`` that span most of ``up @ down``; ``(min(count, R), in)``.

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
    """The matrix on a device with QR and float64: Apple's MPS has neither, so the CPU takes over."""
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
    """For each row of singular values, the share of the squares in the first ``rank``."""
    squares = s.cpu().to(torch.float64).square()
    pairs = zip(squares[:, :rank].sum(dim=1).tolist(), squares.sum(dim=1).tolist(), strict=True)
    return [kept / total if total else 1.0 for kept, total in pairs]


def squared_singular_values(up: Tensor, down: Tensor) -> Tensor:
    """Return the squared singular values of ``up (out, R) @ down (R, in)``, from R x R Gram matrices.

    ``(min(R, out, in),)``, descending, in float64.
    """
    up, down = _computable(up).double(), _computable(down).double()
    rows, columns = up.shape[0], down.shape[1]
    root = _root_of_gram(up)
    values: Tensor = torch.linalg.eigvalsh(root @ (down @ down.T) @ root.T)
    return values.flip(0).clamp(min=0)[: min(rows, columns)]


@one_thread()
def squared_singular_values_of(matrix: Tensor) -> Tensor:
    """Return the squared singular values of a full matrix, descending, in float64, from its Gram matrix."""
    matrix = _computable(matrix)
    values: Tensor = torch.linalg.eigvalsh(_gram(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T))
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
