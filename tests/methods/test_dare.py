"""DARE: what is dropped is drawn at random, what stays is divided by the density."""

import math

import pytest
import torch

from merge_ops.merging import merge
from merge_ops.methods.consensus import average_agreeing, elect_signs
from merge_ops.methods.dare_linear import dare_linear
from merge_ops.methods.dare_ties import dare_ties
from merge_ops.methods.masks import MaskGenerator, mask_key
from merge_ops.methods.sparsify import drop_random

KEYS = [mask_key(0, "layer", who) for who in "ab"]
VALUES = torch.randn(2, 400, 500, generator=torch.Generator().manual_seed(3))


def kept(generator, like, density):
    """All masks of a generator, ``(n, rows, columns)`` of bool."""
    return generator.masks(like, density).bool()


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_what_is_kept_is_divided_by_the_density(density):
    found = drop_random(VALUES, density, MaskGenerator(KEYS))
    mask = kept(MaskGenerator(KEYS), VALUES, density)
    torch.testing.assert_close(found[mask], VALUES[mask] / density, rtol=1e-6, atol=0)
    assert not found[~mask].any()


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.9])
def test_expectation_is_the_value_within_3_sigma(density):
    """Over 8e5 entries of a constant: mean 1, variance (1 - d) / d an entry."""
    ones = torch.ones_like(VALUES)
    means = []
    for seed in (0, 1):
        keys = [mask_key(seed, "layer", who) for who in "ab"]
        means.append(float(drop_random(ones, density, MaskGenerator(keys)).double().mean()))
    sigma = math.sqrt((1 - density) / density / (2 * VALUES.numel()))
    assert abs(sum(means) / 2 - 1) < 3 * sigma


def test_hand_written_numbers():
    pair = torch.tensor([[[4.0, -1.0], [2.0, 3.0]], [[-1.0, -2.0], [5.0, -6.0]]])
    mask = kept(MaskGenerator(KEYS), pair, 0.5)
    wanted = sum(w * 2 * m * p for w, m, p in zip((3.0, -1.0), mask, pair, strict=True))
    found = dare_linear(pair, torch.tensor([3.0, -1.0]), density=0.5, generator=MaskGenerator(KEYS))
    assert torch.equal(found, wanted)
    assert 0 < int(mask.sum()) < mask.numel()


def test_dare_ties_elects_among_what_was_kept():
    weights = torch.tensor([0.5, 2.0])
    dropped = drop_random(VALUES, 0.4, MaskGenerator(KEYS))
    for vote in ("total", "frequency"):
        found = dare_ties(
            VALUES, weights, density=0.4, majority_sign_method=vote, generator=MaskGenerator(KEYS)
        )
        assert torch.equal(found, average_agreeing(dropped, elect_signs(dropped, vote), weights))


def test_the_mean_over_seeds_is_the_exact_sum(make_lora):
    loras = [make_lora(n, shapes={"layer": (60, 50)}, seed=i) for i, n in enumerate("ab")]
    exact = merge(loras, [0.7, -0.4]).delta("layer").double()
    seeds, density = 400, 0.5
    draws = [
        merge(loras, [0.7, -0.4], "dare_linear", density=density, seed=s).delta("layer") for s in range(seeds)
    ]
    mean = torch.stack(draws).double().mean(dim=0)
    # sum over all entries of (mean - exact)^2 has this expectation; a bias adds to it
    variance = sum(
        (w * lora.layers["layer"].delta().double()).square().sum()
        for w, lora in zip((0.7, -0.4), loras, strict=True)
    )
    expected = float(variance) * (1 - density) / density / seeds
    assert float((mean - exact).square().sum()) == pytest.approx(expected, rel=0.1)


def test_another_seed_draws_other_masks_and_the_same_seed_the_same(stack):
    first, again, other = (merge(stack, None, "dare_linear", density=0.5, seed=s) for s in (7, 7, 8))
    for name in first.layers:
        assert torch.equal(first.delta(name), again.delta(name))
        assert not torch.equal(first.delta(name), other.delta(name))


def test_density_zero_is_zero_and_density_one_is_the_sum():
    generator = MaskGenerator(KEYS)
    weights = torch.tensor([2.0, 3.0])
    assert not dare_linear(VALUES, weights, density=0.0, generator=generator).any()
    found = dare_linear(VALUES, weights, density=1.0, generator=generator)
    torch.testing.assert_close(found, 2 * VALUES[0] + 3 * VALUES[1])


def test_the_same_lora_twice_draws_two_masks(make_lora):
    """Otherwise the two would drop the same entries, and nothing would be averaged."""
    lora = make_lora(shapes={"layer": (100, 100)}, seed=1)
    delta = lora.layers["layer"].delta()
    found = merge([lora, lora], [1.0, 10.0], "dare_linear", density=0.5).delta("layer") / (2 * delta)
    shares = [float((found - times).abs().lt(0.01).double().mean()) for times in (0, 1, 10, 11)]
    assert all(abs(share - 0.25) < 0.02 for share in shares) and sum(shares) == pytest.approx(1)
