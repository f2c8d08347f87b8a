"""Truncated singular value decompositions of full matrices that compute no more of them than they must."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..steady import one_thread, product
from .svd import GRAM_ROWS, TruncatedSVD, computable, energy_share, gram_of

_SMALL = 128  # a matrix with a side up to this long is decomposed in full
_BROAD = 3  # and one with a side up to this many times as long as there are directions to follow
_FEW = 64  # directions that are tried before all of them are computed
_ENOUGH = 0.9  # of the energy, where the error of subspace iteration is below 0.2 % of all
_MAX_TURNS = 8
_UNASKED = 3  # products where asking for a number would make the host wait for a device
_SETTLED = 5e-3  # a turn that lowers the squared error by less than this share ends the iteration
_DEPENDENT = 1e-9  # squared, the least sine or relative singular value that a Gram matrix can tell from 0
_DEAR = 2  # R x R decompositions take so much more time than a product with the matrix
_JITTER = 1e-5  # above rounding of float32
_LEAST = 1.2e-38  # of the normal numbers of float32


def tracked(rank: int) -> int:
    """Return how many directions subspace iteration follows so that the first ``rank`` settle soon."""
    return rank + max(8, rank // 8)


@one_thread()
def svd_of_matrix(matrix: Tensor, rank: int, start: Tensor) -> TruncatedSVD:
    """Return the rank-``rank`` SVD of a full matrix by subspace iteration (Halko et al. 2011, alg. 4.4).

    The rows of ``start`` ``(any, in)`` span a first guess of the row space; ``leading_rows`` gives a good one
    for a matrix that was merged from low-rank deltas, so that two or three products with the matrix are
    enough. They alternate between left and right for as long as they lower the squared error; on other
    devices than the CPU there are three. Deterministic. ``matrix`` is ``(out, in)``.
    """
    matrix, start = computable(matrix), computable(start)
    out, columns = matrix.shape
    rank = min(rank, out, columns)
    width = max(start.shape[0], tracked(rank))
    if _takes_all(width, matrix.shape):
        return _of_all_directions(matrix, rank)
    if matrix.device.type != "cpu":
        return _without_asking(matrix, rank, _widened(start, width))
    seen, side, turned = _widened(start, width).T.double(), matrix.T, True
    gram, energy, captured = seen.T @ seen, _squared_norm(matrix), 0.0
    for turn in range(_MAX_TURNS + 1):
        basis, side, turned = _orthonormal(seen, gram), side.T, not turned
        seen = product(side, basis).double()  # (out, width), then (in, width), and so on
        gram = seen.T @ seen
        before, captured = captured, float(torch.linalg.eigvalsh(gram)[-rank:].sum())
        if turn and captured - before <= _SETTLED * max(energy - captured, 0.0):
            break
    q, s, mixed = _svd_of_thin(seen, gram, rank)  # side = q @ diag(s) @ (basis @ mixed).T
    u, v = (basis @ mixed, q) if turned else (q, basis @ mixed)
    kept = min(_squared_norm(s[None]) / energy, 1.0) if energy else 1.0
    return TruncatedSVD(u, s, v.T, kept)


def _without_asking(matrix: Tensor, rank: int, start: Tensor) -> TruncatedSVD:
    """``svd_of_matrix`` by a fixed number of products; the host waits once, for the share of the energy."""
    seen, side = start.T, matrix
    for _ in range(_UNASKED):
        basis = torch.linalg.qr(seen)[0]
        seen, side = side @ basis, side.T
    q, r = torch.linalg.qr(seen)
    inner, s, outer = torch.linalg.svd(r, full_matrices=False)  # matrix = q @ inner @ s @ outer @ basis.T
    u, s, vh = q @ inner[:, :rank], s[:rank], outer[:rank] @ basis.T
    rows = torch.linalg.vector_norm(matrix, dim=1)
    kept, energy = torch.stack((s.square().sum(), rows.square().sum())).tolist()
    return TruncatedSVD(u, s, vh, min(kept / energy, 1.0) if energy else 1.0)


def _takes_all(width: int, shape: Sequence[int]) -> bool:
    """Whether computing all directions of a matrix is no slower than following some."""
    return max(_BROAD * width, _SMALL) >= min(shape)


def _of_all_directions(matrix: Tensor, rank: int) -> TruncatedSVD:
    """From the Gram matrix of the shorter side; by a full SVD if the rank reaches its rounding."""
    found = _from_gram(matrix, rank, None)
    if float(found.s[-1]) ** 2 > _DEPENDENT * float(found.s[0]) ** 2:
        return found
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return TruncatedSVD(u[:, :rank], s[:rank], vh[:rank], energy_share(s, rank))


def _orthonormal(thin: Tensor, gram: Tensor) -> Tensor:
    """An orthonormal basis in float32 of the columns of ``(any, width)``: by Cholesky-QR of its Gram matrix.

    By QR where columns nearly depend on each other.
    """
    root, failed = torch.linalg.cholesky_ex(gram)
    sines = root.diagonal().square() / gram.diagonal()
    if int(failed) or not float(sines.min()) > _DEPENDENT:
        q: Tensor = torch.linalg.qr(thin)[0]
        return q.float()
    basis: Tensor = thin @ torch.linalg.solve_triangular(root.T, torch.eye(len(root)).to(root), upper=True)
    return basis.float()


def _svd_of_thin(thin: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 ``q (any, rank)``, ``s`` and ``v (width, rank)`` of a matrix ``(any, width)`` in float64."""
    squares, v = torch.linalg.eigh(gram)
    squares, v = squares.flip(0)[:rank], v.flip(1)[:, :rank]
    s = squares.clamp(min=0).sqrt()
    if float(squares[-1]) > _DEPENDENT * float(squares[0]):
        q = thin @ (v / s)
    else:
        q, r = torch.linalg.qr(thin)
        inner, s, outer = torch.linalg.svd(r, full_matrices=False)
        q, s, v = q @ inner[:, :rank], s[:rank], outer[:rank].T
    return q.float(), s.float(), v.float()


@one_thread()
def leading_rows(up: Tensor, down: Tensor, count: int) -> Tensor:
    """Return combinations of the rows of ``down`` that span most of ``up @ down``; ``(min(count, R), in)``.

    Its leading right singular vectors times their singular values, from R x R Gram matrices; random
    combinations where R is so large that those take more time than they save. No rows, if the matrix is so
    small that ``svd_of_matrix`` needs no guess.
    """
    shape, inner = (up.shape[0], down.shape[1]), down.shape[0]
    if _takes_all(count, shape):
        return down[:0]
    if count >= inner:
        return down
    up, down = (each / each.abs().amax().clamp_(min=_LEAST) for each in (computable(up), computable(down)))
    if inner**3 > _DEAR * count * math.prod(shape):
        mixing = _random(count, down.shape[0]).to(down.device) * torch.linalg.vector_norm(up, dim=0)
    else:
        over = up.T @ up
        over.diagonal().add_(_JITTER * over.diagonal().mean())
        root = torch.linalg.cholesky_ex(over)[0]
        mixing = torch.linalg.eigh(root.T @ (down @ down.T) @ root)[1][:, -count:].T @ root.T
    rows: Tensor = mixing @ down
    return rows


@one_thread()
def exact_svd_of_matrix(matrix: Tensor, rank: int) -> TruncatedSVD:
    """Return the rank-``rank`` SVD of a full matrix ``(out, in)`` from its Gram matrix in float64.

    It keeps all that the rank can keep, and takes several times as long as ``svd_of_matrix``.
    """
    return _from_gram(computable(matrix), rank, None)


@one_thread()
def best_svd(matrix: Tensor, rank: int | None = None, energy: float | None = None) -> TruncatedSVD:
    """Return the truncated SVD of a full matrix of which nothing is known, with the least error there is.

    With ``energy``, a share of the squared Frobenius norm, it has the smallest rank that keeps it, or
    ``rank`` if that is not enough. Subspace iteration misses up to 2 % of what the best truncation loses, so
    it is used where next to nothing is lost. Elsewhere the result comes from the float64 Gram matrix of the
    shorter side. Deterministic. ``matrix`` is ``(out, in)``.
    """
    matrix = computable(matrix)
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
    squares, directions = torch.linalg.eigh(gram_of(tall))
    squares = squares.flip(0).clamp(min=0)
    kept = rank if energy is None else min(_rank_of(squares, energy, float(squares.sum())), rank)
    s, directions = squares[:kept].sqrt(), directions[:, -kept:].flip(1)
    others = torch.cat(
        [product(rows.to(directions.dtype), directions) for rows in torch.split(tall, GRAM_ROWS)]
    )
    others /= torch.where(s > 0, s, 1.0)
    u, v = (directions, others) if wide else (others, directions)
    share = energy_share(squares.sqrt(), kept)
    return TruncatedSVD(u.float(), s.float(), v.T.float(), share)


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


def _widened(start: Tensor, width: int) -> Tensor:
    """``start`` with seeded random rows below it, so that it has ``width`` rows."""
    if start.shape[0] == width:
        return start
    return torch.cat((start, _random(width - start.shape[0], start.shape[1]).to(start.device)))


def _random(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _squared_norm(matrix: Tensor) -> float:
    """Each row's norm in float32, which is enough for its few thousand entries; their sum in float64."""
    return float(torch.linalg.vector_norm(matrix, dim=1).to(torch.float64).square().sum())
