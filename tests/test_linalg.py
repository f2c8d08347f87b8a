"""Singular values of what is never formed, and of what is formed once."""

import numpy as np
import pytest
import torch

from merge_ops import merge
from merge_ops.merging.matrix_svd import _without_asking, leading_rows, svd_of_matrix, tracked
from merge_ops.merging.svd import TruncatedSVD, product_inner, svd_of_product, svds_of_products
from tests.launches import Launches

SIDES = (("up", 1), ("down", 0))


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


UPS, DOWNS = (
    (normal(200, 8, seed=1), normal(200, 8, seed=2)),
    (normal(8, 300, seed=3), normal(8, 300, seed=4)),
)
FALLING = 10.0 ** -torch.arange(16.0)
DEPENDENT = {
    "the same twice": ([UPS[0]] * 2, [DOWNS[0]] * 2),
    "the same ups": ([UPS[0]] * 2, DOWNS),
    "the same downs": (UPS, [DOWNS[0]] * 2),
    "nearly the same downs": (UPS, (DOWNS[0], DOWNS[0] + 1e-5 * DOWNS[1])),
    "nearly the same ups": ((UPS[0], UPS[0] + 1e-5 * UPS[1]), DOWNS),
    "zero ups": ((UPS[0], 0 * UPS[1]), DOWNS),
    "zero downs": (UPS, (DOWNS[0], 0 * DOWNS[1])),
    "other scales": ((UPS[0], 1e4 * UPS[1]), DOWNS),
    "large": ([1e17 * up for up in UPS], [1e17 * down for down in DOWNS]),
    "small": ([1e-17 * up for up in UPS], [1e-17 * down for down in DOWNS]),
    "uneven": ([1e15 * up for up in UPS], [1e-15 * down for down in DOWNS]),
    "falling": ([torch.cat(UPS, dim=1) * FALLING], DOWNS),
}


@pytest.mark.parametrize("rank", [4, 8, 12, 16])
@pytest.mark.parametrize("case", DEPENDENT)
def test_svd_of_product_of_dependent_and_uneven_factors(case, rank):
    """Whether Gram matrices can tell all singular values apart or not."""
    up, down = torch.cat(tuple(DEPENDENT[case][0]), dim=1), torch.cat(tuple(DEPENDENT[case][1]))
    matrix, found = up.double() @ down.double(), svd_of_product(up, down, rank)
    assert_is_svd(found, rank)
    norm, s = float(matrix.norm()), np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.s.numpy(), s[:rank], rtol=0, atol=1e-6 * s[0])
    assert float((product(found) - matrix).norm()) <= tail(matrix, rank) + 1e-6 * norm
    assert found.energy_kept == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()), abs=1e-6)


@pytest.mark.parametrize("inner", [32, 64, 160])
def test_svd_of_product_loses_nothing_beyond_rounding(inner):
    """The factors of a sum of LoRAs: their error is the least one but for the rounding of float32."""
    fall = torch.arange(1, inner // 2 + 1) ** -0.5
    up, down = normal(320, inner, seed=1) * fall.repeat(2), normal(inner, 400, seed=2)
    matrix = up.double() @ down.double()
    balanced_up, balanced_down = svd_of_product(up, down, 16).balanced()
    error = float((balanced_up.double() @ balanced_down.double() - matrix).norm())
    assert abs(error / tail(matrix, 16) - 1) < 2e-13


def test_a_batch_gives_what_each_product_gives():
    """Also where some of its layers need QR."""
    cases = ("other scales", "the same twice", "nearly the same downs", "zero ups", "zero downs")
    ups = torch.stack([torch.cat(tuple(DEPENDENT[case][0]), dim=1) for case in cases])
    downs = torch.stack([torch.cat(tuple(DEPENDENT[case][1])) for case in cases])
    for up, down, found in zip(ups, downs, svds_of_products(ups, downs, 8), strict=True):
        assert_is_svd(found, 8)
        alone = svd_of_product(up, down, 8)
        torch.testing.assert_close(found.s, alone.s, rtol=1e-5, atol=0)
        assert found.energy_kept == pytest.approx(alone.energy_kept, abs=1e-12)
        norm = float(product(alone).norm())
        torch.testing.assert_close(product(found), product(alone), rtol=0, atol=1e-6 * norm)


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


@pytest.mark.parametrize("inner", [60, 120, 400], ids=["all", "leading", "mixed"])
@pytest.mark.parametrize("shape", [(400, 700), (700, 400)], ids=["wide", "tall"])
def test_svd_of_matrix_from_leading_rows(shape, inner):
    """From all rows of the sum, from those that matter most, and from random combinations of very many."""
    up, down = normal(shape[0], inner, seed=1), normal(inner, shape[1], seed=2)
    matrix = up @ down + 10.0 * normal(*shape, seed=3)
    start = leading_rows(up, down, tracked(64))
    assert start.shape == (min(tracked(64), inner), shape[1])
    found = svd_of_matrix(matrix, 64, start)
    assert_is_svd(found, 64)
    assert float((product(found) - matrix.double()).norm()) <= 1.01 * tail(matrix, 64)


@pytest.mark.parametrize("ups", ["zero", "the same", "tiny"])
def test_leading_rows_of_ups_that_depend_on_each_other(ups):
    """They span the rows that there are."""
    one, down = normal(300, 20, seed=1), normal(40, 500, seed=2)
    up = torch.cat((one, {"zero": 0 * one, "the same": one, "tiny": 1e-30 * one}[ups]), dim=1) * 1e-8
    matrix = up.double() @ down.double()
    q = torch.linalg.qr(leading_rows(up, down, 24).double().T)[0]
    assert float((matrix - matrix @ q @ q.T).norm()) <= 1e-3 * float(matrix.norm())


@pytest.mark.parametrize("rank", [1, 20, 120])
@pytest.mark.parametrize("shape", [(120, 700), (700, 120), (300, 310)], ids=["wide", "tall", "square"])
def test_svd_of_matrix_that_is_decomposed_in_full_is_exact(shape, rank):
    matrix = normal(*shape, seed=1)
    found = svd_of_matrix(matrix, rank, matrix[:2] if min(shape) == 120 else matrix[:101])
    assert_is_svd(found, rank)
    assert float((product(found) - matrix.double()).norm()) <= (1 + 1e-6) * tail(matrix, rank) + 1e-4


@pytest.mark.parametrize("shape", [(100, 120), (400, 500)], ids=["full", "iterated"])
def test_svd_of_matrix_beyond_its_rank(shape):
    """The directions that are left over are orthonormal, too."""
    matrix = normal(shape[0], 5, seed=1) @ normal(5, shape[1], seed=2)
    found = svd_of_matrix(matrix, 12, normal(3, shape[1], seed=3))
    assert_is_svd(found, 12)
    assert float((product(found) - matrix.double()).norm()) <= 1e-5 * float(matrix.norm())
    assert found.energy_kept == pytest.approx(1, abs=1e-6)


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


@pytest.mark.parametrize("method", ["ties", "dare_ties", "magnitude_prune", "dare_linear"])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_other_devices_follow_fixed_steps_to_the_same_end(make_lora, method, decay):
    """Within 1 % of the best; few launches, and no wait before the share of the energy is read."""
    shapes = {"x": (500, 400)}
    loras = [make_lora(name, shapes=shapes, rank=8, decay=decay, seed=i) for i, name in enumerate("ab")]
    layer = merge(loras, [0.8, 0.6], method, density=0.5).layer("x")
    matrix = layer.matrix()
    up, down = (torch.cat([getattr(lora.layers["x"], side) for lora in loras], dim) for side, dim in SIDES)
    start = leading_rows(up, down, tracked(8))
    with Launches() as seen:
        found = _without_asking(matrix, 8, start)
    assert not seen.waits and len(seen.launches) <= 24, seen.launches
    assert_is_svd(found, 8)
    best = torch.linalg.svdvals(matrix.double()).square()
    lost = float((matrix.double() - product(found).double()).square().sum())
    assert lost <= 1.01 * float(best[8:].sum())
    assert found.energy_kept == pytest.approx(1 - lost / float(best.sum()), abs=1e-4)


def test_a_start_needs_no_wait():
    """Nor does the SVD of exact sums, but for one for all layers of a batch."""
    with Launches() as seen:
        leading_rows(normal(300, 32), normal(32, 400, seed=1), 16)
    assert not seen.waits and len(seen.launches) <= 24, seen.launches
    with Launches() as seen:
        svds_of_products(normal(6, 300, 32), normal(6, 32, 400, seed=1), 16)
    assert not seen.waits and len(seen.launches) <= 48, seen.launches
