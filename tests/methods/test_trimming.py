"""Breadcrumbs, DELLA and SCE in numbers that can be followed, and against their papers' steps."""

import pytest
import torch
from torch import tensor

from merge_ops.merging import merge
from merge_ops.methods.breadcrumbs import breadcrumbs
from merge_ops.methods.consensus import average_agreeing, elect_signs
from merge_ops.methods.dare_ties import dare_ties
from merge_ops.methods.della import della
from merge_ops.methods.masks import MaskGenerator, mask_key
from merge_ops.methods.sce import sce
from tests.methods.dense import matrices, random_loras

KEYS = [mask_key(0, "layer", who) for who in "ab"]
VALUES = torch.randn(2, 300, 400, generator=torch.Generator().manual_seed(3))


def test_breadcrumbs_drops_both_ends():
    line = tensor([[[1.0, -2.0, 3.0, -4.0, 5.0, 6.0, -7.0, 8.0, 9.0, 10.0]]])
    found = breadcrumbs(line, tensor([2.0]), density=0.5, outliers=0.2)
    assert torch.equal(found, 2 * tensor([[0.0, 0.0, 0.0, -4.0, 5.0, 6.0, -7.0, 8.0, 0.0, 0.0]]))


@pytest.mark.parametrize("count", [8, 64])
def test_breadcrumbs_of_a_small_matrix_keeps_what_it_should(count):
    """One percent of few entries is none of them, which leaves the rest as it is."""
    small = torch.arange(1.0, count + 1).view(1, 1, count)
    found = breadcrumbs(small, tensor([1.0]), density=0.5, outliers=0.01)
    assert torch.equal(found[0].nonzero()[:, 0], torch.arange(count // 2, count))


def test_breadcrumbs_gives_the_density_room_before_the_outliers():
    line = torch.arange(1.0, 11).view(1, 1, 10)
    assert breadcrumbs(line, tensor([1.0]), density=0.9, outliers=0.5).count_nonzero() == 9
    assert torch.equal(breadcrumbs(line, tensor([1.0]), density=1.0, outliers=0.5), line[0])


@pytest.mark.parametrize(("density", "outliers"), [(0.6, 0.1), (0.9, 0.0), (0.3, 0.9)])
def test_breadcrumbs_of_the_engine_cuts_whole_layers(density, outliers):
    """Its thresholds are those of the matrix, whatever the tiles."""
    loras = random_loras(2, shape=(50, 40))
    wanted = breadcrumbs(matrices(loras).float(), tensor([0.7, -0.4]), density=density, outliers=outliers)
    found = merge(loras, [0.7, -0.4], "breadcrumbs", density=density, outliers=outliers).delta("layer")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def dropped(density, epsilon, values=VALUES):
    """What DELLA keeps of one LoRA, in a merge of that LoRA alone."""
    return della(
        values[:1], torch.ones(1), density=density, epsilon=epsilon, generator=MaskGenerator(KEYS[:1])
    )


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.2), (0.9, 0.1)])
def test_della_keeps_large_entries_more_often(density, epsilon):
    """The chance rises with the rank within a row, from density - epsilon to density + epsilon."""
    kept = dropped(density, epsilon) != 0
    order = VALUES[0].abs().argsort(dim=-1)
    by_rank = kept.gather(-1, order).double()
    assert float(by_rank.mean()) == pytest.approx(density, abs=0.005)
    for part, shares in ((0, -0.75), (3, 0.75)):
        quarter = by_rank[:, 100 * part : 100 * part + 100]
        assert float(quarter.mean()) == pytest.approx(density + shares * epsilon, abs=0.015)


def test_della_divides_by_the_chance():
    kept = dropped(0.5, 0.15)
    ranks = VALUES[0].abs().argsort(dim=-1).argsort(dim=-1)
    chance = 0.35 + 0.3 * ranks / 399
    mask = kept != 0
    torch.testing.assert_close(kept[mask], (VALUES[0] / chance)[mask], rtol=1e-5, atol=0)


def test_della_keeps_the_value_on_average():
    seeds = [MaskGenerator([mask_key(seed, "layer", "a")]) for seed in range(200)]
    row = VALUES[:1, :20, :50]
    total = sum(della(row, torch.ones(1), density=0.5, generator=each).double() for each in seeds) / 200
    error = float((total - row[0]).norm() / row[0].norm())
    assert error < 1.5 * (1 / 200) ** 0.5  # the variance of an entry is about its square, over 200 draws


def test_della_without_epsilon_is_dare_ties():
    shared = {"density": 0.4, "majority_sign_method": "frequency", "generator": MaskGenerator(KEYS)}
    weights = tensor([0.5, 2.0])
    torch.testing.assert_close(
        della(VALUES, weights, epsilon=0.0, **shared), dare_ties(VALUES, weights, **shared)
    )


def test_della_elects_among_what_was_kept():
    weights, generator = tensor([0.5, 2.0]), MaskGenerator(KEYS)
    kept = torch.stack([
        della(VALUES[i : i + 1], torch.ones(1), generator=MaskGenerator(KEYS[i : i + 1])) for i in range(2)
    ])  # fmt: skip
    wanted = average_agreeing(kept, elect_signs(kept, "total"), weights)
    torch.testing.assert_close(della(VALUES, weights, generator=generator), wanted)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_della_at_the_ends(density):
    found = della(VALUES, torch.ones(2), density=density, generator=MaskGenerator(KEYS))
    signs = elect_signs(VALUES, "total")
    assert torch.equal(found, density * average_agreeing(VALUES, signs, torch.ones(2)))


def paper_sce(values, density):
    """Select, calculate, erase, one entry after the other."""
    variance = values.var(dim=0, correction=0)
    least = variance.flatten().sort(descending=True).values[int(density * variance.numel()) - 1]
    values = values * (variance >= least)
    energies = values.square().sum((1, 2)) / values.square().sum()
    merged = torch.zeros_like(values[0])
    for i in range(merged.shape[0]):
        for j in range(merged.shape[1]):
            entry = values[:, i, j]
            mask = (entry * (1.0 if entry.sum() >= 0 else -1.0)) > 0
            if mask.any():
                merged[i, j] = (entry * energies)[mask].sum() / energies[mask].sum()
    return merged


@pytest.mark.parametrize("density", [0.25, 0.6, 1.0])
def test_sce_follows_the_paper(density):
    loras, weights = random_loras(3, shape=(12, 10)), [0.7, -0.4, 1.3]
    wanted = paper_sce(matrices(loras, weights), density).float()
    found = merge(loras, weights, "sce", density=density).delta("layer")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    called = sce(matrices(loras).float(), tensor(weights), density=density)
    torch.testing.assert_close(called, wanted, rtol=1e-4, atol=1e-5)


def test_sce_weighs_by_energy():
    """4 and 3 agree: (16 * 4 + 9 * 3) / 25; -5 is outvoted by 4 + 3."""
    entry = tensor([4.0, 3.0, -5.0]).view(3, 1, 1)
    found = sce(entry, torch.ones(3))
    assert float(found) == pytest.approx((16 * 4 + 9 * 3) / 25, rel=1e-6)
