"""Truncating a merge to a rank, in every space, and what the report says about it."""

import pytest
import torch

from merge_ops import COMBINATION_TYPES, METHODS, ParameterError, Recipe
from tests.laws import ENTRYWISE, merge

SPACES = [*(("delta", name) for name in METHODS), *(("factors", name) for name in ENTRYWISE)]


def singular_values(merged, name):
    return torch.linalg.svdvals(merged.delta(name).flatten(1).double())


@pytest.fixture(scope="module")
def sources(make_lora):
    """One flat spectrum and two that fall, for a layer of the size of one in SD1.5 or SDXL."""

    def make(rows, columns):
        shapes = {"layer": (rows, columns)}
        return [
            make_lora("flat", shapes=shapes, rank=8, seed=1),
            make_lora("falling", shapes=shapes, rank=16, alpha=8, seed=2, decay=0.85),
            make_lora("steep", shapes=shapes, rank=4, seed=3, decay=0.4),
        ]

    return make


def check_rank(loras, weights, method, ranks):
    exact = merge(loras, weights, method)
    full = exact.delta("layer").double()
    s = torch.linalg.svdvals(full)
    for rank in ranks:
        merged = merge(loras, weights, method, rank=rank)
        up, down = merged.factors("layer")
        assert up.shape == (full.shape[0], rank) and down.shape == (rank, full.shape[1])
        error = float((up.double() @ down.double() - full).norm())
        best = float(s[rank:].norm())
        assert error <= 1.01 * best + 1e-6 * float(s.norm()), f"rank {rank}: {error} against {best}"
        kept = merged.report.layers[0].energy_kept
        assert kept == pytest.approx(1 - (error / float(s.norm())) ** 2, abs=2e-5)
        assert merged.report.layers[0].rank_out == rank
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1), rtol=1e-3, atol=1e-5)
    return s


@pytest.mark.parametrize("method", METHODS)
def test_truncation_is_within_1_percent_of_the_best(method, sources):
    """Least squares by a full float64 SVD; singular values are shared evenly by up and down."""
    check_rank(sources(320, 768), [0.8, 0.6, -0.5], method, (4, 8, 16))


@pytest.mark.parametrize("method", METHODS)
def test_truncation_of_a_feed_forward_layer(method, sources):
    check_rank(sources(640, 2560)[:2], [0.7, 0.7], method, (4, 16))


@pytest.mark.parametrize("density", [0.05, 0.9])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "magnitude_prune"])
def test_truncation_at_extreme_densities(method, density, sources):
    """Little is left of the row space that the iteration starts from."""
    loras, weights = sources(320, 400), [1.0, 1.0, 1.0]
    full = merge(loras, weights, method, density=density).delta("layer").double()
    s = torch.linalg.svdvals(full)
    for rank in (1, 8):
        found = merge(loras, weights, method, density=density, rank=rank).delta("layer").double()
        assert float((found - full).norm()) <= 1.01 * float(s[rank:].norm())


@pytest.mark.parametrize(("space", "method"), SPACES)
def test_rank_is_clamped_to_the_layer_and_then_exact(method, space, make_lora):
    loras = [make_lora(n, rank=3, seed=i) for i, n in enumerate("ab")]
    exact = merge(loras, [0.7, -0.4], method, space=space)
    merged = merge(loras, [0.7, -0.4], method, space=space, rank=1000)
    for row in merged.report.layers:
        assert row.rank_out <= min(merged.layer(row.name).template.matrix_shape)
        assert row.energy_kept == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(merged.delta(row.name), exact.delta(row.name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ENTRYWISE)
def test_factor_space_keeps_the_rank_and_truncates_its_product(method, make_lora):
    loras = [make_lora(n, rank=6, seed=i) for i, n in enumerate("ab")]
    exact = merge(loras, [0.7, 0.4], method, space="factors")
    merged = merge(loras, [0.7, 0.4], method, space="factors", rank=2)
    for row in merged.report.layers:
        assert exact.factors(row.name)[0].shape[1] == 6
        s = singular_values(exact, row.name)
        error = float((merged.delta(row.name) - exact.delta(row.name)).double().norm())
        assert error <= float(s[2:].norm()) * 1.001 + 1e-5 * float(s.norm())
        assert row.energy_kept == pytest.approx(float(s[:2].square().sum() / s.square().sum()), abs=1e-5)


@pytest.mark.parametrize(
    "arguments", [{"rank": 3}, {"space": "factors"}, {}], ids=["rank", "factors", "exact"]
)
def test_scale_multiplies_the_whole_result(arguments, make_lora):
    loras = [make_lora(n, rank=4, seed=i) for i, n in enumerate("ab")]
    for method in ENTRYWISE if "space" in arguments else METHODS:
        plain = merge(loras, [0.7, -0.4], method, **arguments)
        scaled = merge(loras, [0.7, -0.4], method, scale=-2.5, **arguments)
        for name in plain.layers:
            torch.testing.assert_close(scaled.delta(name), -2.5 * plain.delta(name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("combination_type", COMBINATION_TYPES)
def test_rank_out_of_every_combination_type(combination_type, make_lora):
    loras = [make_lora(n, rank=4, seed=i) for i, n in enumerate("ab")]
    row = COMBINATION_TYPES[combination_type]
    merged = merge(loras, combination_type=combination_type, svd_rank=3 if row.truncated else None)
    wanted = 3 if row.truncated else 8 if combination_type == "cat" else 4
    for report in merged.report.layers:
        assert report.rank_out == merged.factors(report.name)[0].shape[1] == wanted
        assert report.ranks_in == (4, 4)
        assert (report.energy_kept < 1) == row.truncated


def test_a_truncated_result_holds_no_full_delta(make_lora):
    loras = [make_lora(n, shapes={"layer": (300, 400)}, seed=i) for i, n in enumerate("ab")]
    fixed = merge(loras, None, "ties", rank=5).layer("layer").fixed
    assert fixed.up.untyped_storage().nbytes() <= 2 * 300 * 5 * 4, "a view would keep a larger tensor alive"
    assert fixed.down.untyped_storage().nbytes() <= 2 * 400 * 5 * 4


@pytest.mark.parametrize("combination_type", [None, "ties", "svd"])
def test_a_result_cut_after_its_report_was_read_has_its_own_report(combination_type, make_lora):
    """And its own outline and energy; the result that it was cut from stays."""
    loras = [make_lora(n, rank=6, seed=i, decay=0.8) for i, n in enumerate("ab")]
    merged = merge(loras, [0.7, -0.4], combination_type=combination_type)
    ranks = [row.rank_out for row in merged.report.layers]
    energy = merged.energy_kept
    assert [row.rank_out for row in merged.outline.layers] == ranks and set(ranks) != {2}
    shorter = merged.truncated(2)
    for report in (shorter.report, shorter.outline):
        assert {row.rank_out for row in report.layers} == {2}
        assert all(0 < row.energy_kept < 1 for row in report.layers)
    assert 0 < shorter.energy_kept < energy
    assert shorter.request.rank == shorter.request.cut_to == 2
    assert [row.rank_out for row in merged.report.layers] == ranks and merged.energy_kept == energy
    for name in merged.layers:
        s = singular_values(merged, name)
        error = float((merged.delta(name) - shorter.delta(name)).double().norm())
        assert error <= float(s[2:].norm()) * 1.001 + 1e-5 * float(s.norm())
    again = Recipe.of(shorter).run(loras)
    assert {row.rank_out for row in again.report.layers} == {2}


def test_a_rank_below_one_is_refused(make_lora):
    with pytest.raises(ParameterError, match="rank must be 1 or more, not 0"):
        merge([make_lora()]).truncated(0)
