"""Singular values of what is never formed, and of what is formed once."""

import numpy as np
import pytest
import torch

from merge_ops.merging.svd import TruncatedSVD, product_inner, svd_of_matrix, svd_of_product


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tail(matrix, rank):
    """The least Frobenius error of any matrix of that rank (Eckart-Young), in float64."""
    s = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return float(np.sqrt((s[rank:] ** 2).sum()))


def product(found: TruncatedSVD):
    return found.u.double() @ torch.diag(found.s.double()) @ found.vh.double()


def assert_is_svd(found: TruncatedSVD, rank):
    k = found.s.numel()
    assert k == rank and found.u.shape[1] == k and found.vh.shape[0] == k
    eye = torch.eye(k)
    torch.testing.assert_close(found.u.T @ found.u, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.vh @ found.vh.T, eye, atol=1e-5, rtol=0)
    assert bool((found.s >= 0).all()) and bool((found.s.diff() <= 0).all())


@pytest.mark.parametrize(("out", "columns", "inner"), [(60, 40, 8), (20, 90, 8), (10, 12, 30), (300, 200, 1)])
@pytest.mark.parametrize("rank", [1, 3, 8, 1000])
def test_svd_of_product_is_the_svd_of_the_product(out, columns, inner, rank):
    up, down = normal(out, inner, seed=1), normal(inner, columns, seed=2)
    matrix = up.double() @ down.double()
    found = svd_of_product(up, down, rank)
    kept = min(rank, inner, out, columns)
    assert_is_svd(found, kept)
    s = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.s.numpy(), s[:kept], rtol=1e-5)
    norm = float(matrix.norm())
    assert float((product(found) - matrix).norm()) <= tail(matrix, kept) + 1e-5 * norm
    assert found.energy_kept == pytest.approx(float((s[:kept] ** 2).sum() / (s**2).sum()), abs=1e-6)


def test_balanced_factors_share_the_singular_values():
    found = svd_of_product(normal(50, 6, seed=1) * 100, normal(6, 40, seed=2) / 100, 4)
    up, down = found.balanced()
    torch.testing.assert_close(up.double() @ down.double(), product(found), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(up.norm(dim=0), found.s.sqrt())
    torch.testing.assert_close(down.norm(dim=1), found.s.sqrt())


@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (30, 40)], ids=["wide", "tall", "small"])
@pytest.mark.parametrize("rank", [1, 4, 12, 25])
def test_svd_of_matrix_is_within_1_percent_of_the_best(shape, rank):
    """A low-rank part half drowned in noise; ``start`` knows the row space of the low-rank part only."""
    up, down = normal(shape[0], 12, seed=1), normal(12, shape[1], seed=2)
    matrix = up @ down + 2.0 * normal(*shape, seed=3)
    found = svd_of_matrix(matrix, rank, down)
    assert_is_svd(found, rank)
    error = float((product(found) - matrix.double()).norm())
    assert error <= 1.01 * tail(matrix, rank)
    total = float(matrix.double().norm()) ** 2
    assert found.energy_kept == pytest.approx(1 - error**2 / total, abs=1e-5)


def test_svd_of_matrix_survives_a_start_that_knows_nothing():
    matrix = normal(200, 5, seed=1) @ normal(5, 300, seed=2) + 0.1 * normal(200, 300, seed=3)
    found = svd_of_matrix(matrix, 5, torch.zeros(8, 300))
    assert float((product(found) - matrix.double()).norm()) <= 1.01 * tail(matrix, 5)


@pytest.mark.parametrize("shape", [(20, 30), (200, 300)], ids=["full", "iterated"])
def test_svd_of_zero_is_zero(shape):
    found = svd_of_matrix(torch.zeros(shape), 4, normal(6, shape[1]))
    assert found.energy_kept == 1.0 and not found.s.any()
    assert bool(found.u.isfinite().all()) and bool(found.vh.isfinite().all())
    by_factors = svd_of_product(torch.zeros(20, 4), normal(4, 30), 2)
    assert by_factors.energy_kept == 1.0 and not by_factors.s.any()


def test_svd_of_matrix_is_deterministic_and_leaves_its_input():
    matrix, start = normal(200, 300, seed=1), normal(6, 300, seed=2)
    before = matrix.clone()
    torch.manual_seed(1)
    one = svd_of_matrix(matrix, 5, start)
    torch.manual_seed(2)
    two = svd_of_matrix(matrix, 5, start)
    assert torch.equal(matrix, before)
    for a, b in ((one.u, two.u), (one.s, two.s), (one.vh, two.vh)):
        assert torch.equal(a, b)


def test_inner_product_is_that_of_the_full_deltas():
    a = (normal(30, 4, seed=1), normal(4, 20, seed=2))
    b = (normal(30, 7, seed=3), normal(7, 20, seed=4))
    full_a, full_b = a[0].double() @ a[1].double(), b[0].double() @ b[1].double()
    assert product_inner(a, b) == pytest.approx(float((full_a * full_b).sum()), rel=1e-12)
    assert product_inner(a, a) == pytest.approx(float(full_a.norm()) ** 2, rel=1e-12)
