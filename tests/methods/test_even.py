"""Even against the normal equations of what it minimises, solved as one dense system."""

import pytest
import torch

from merge_ops import Lora
from merge_ops.merging import merge
from tests.methods.dense import DOUBLE, assert_near, matrices, random_loras, thin_svd

WEIGHTS = [0.7, -0.4, 1.3, 0.2]


def dense_even(loras, weights, ridge):
    """Every entry of W is an unknown: ``(kron(I, M) + kron(N, I) + ridge) vec(W) = vec(wanted)``."""
    terms = matrices(loras, weights)
    out, columns = terms.shape[1:]
    left, right = torch.zeros(out, out, dtype=DOUBLE), torch.zeros(columns, columns, dtype=DOUBLE)
    wanted = ridge * terms.sum(0)
    for term, weight in zip(terms, weights, strict=True):
        size = float(torch.linalg.svdvals(term)[0])
        says = abs(weight) / max(map(abs, weights)) / size**2
        left += says * term @ term.T
        right += says * term.T @ term
        wanted = wanted + 2 * says * term @ term.T @ term
    whole = torch.kron(left, torch.eye(columns, dtype=DOUBLE)) + torch.kron(
        torch.eye(out, dtype=DOUBLE), right
    )
    whole += ridge * torch.eye(out * columns, dtype=DOUBLE)
    return torch.linalg.lstsq(whole, wanted.flatten()).solution.view(out, columns)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_against_the_normal_equations(count, ridge):
    loras = random_loras(count)
    found = merge(loras, WEIGHTS[:count], "even", ridge=ridge).delta("layer")
    assert_near(found, dense_even(loras, WEIGHTS[:count], ridge))


def test_it_minimises_what_it_says():
    """The objective written out, at the result and beside it."""
    loras, weights, ridge = random_loras(3), WEIGHTS[:3], 0.5
    terms = matrices(loras, weights)

    def objective(w):
        total = ridge * (w - terms.sum(0)).square().sum()
        for term, weight in zip(terms, weights, strict=True):
            says = abs(weight) / 1.3 / float(torch.linalg.svdvals(term)[0]) ** 2
            total += says * (((w - term) @ term.T).square().sum() + (term.T @ (w - term)).square().sum())
        return float(total)

    found = merge(loras, weights, "even", ridge=ridge).delta("layer").double()
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        step = torch.randn(found.shape, dtype=DOUBLE, generator=generator)
        assert objective(found) < objective(found + 1e-3 * step)


@pytest.mark.parametrize("ridge", [0.0, 0.5, 1.0])
def test_one_lora_twice_counts_less_than_twice(ridge):
    """Singular value by singular value: ``2 (2 p + ridge) / (4 p + ridge)`` times, p the share of energy."""
    (lora,) = random_loras(1, ranks=(3,))
    found = merge([lora, lora], None, "even", ridge=ridge).delta("layer")
    u, s, vh = thin_svd(matrices([lora])[0])
    energy = (s / s[0]) ** 2
    times = (4 * energy + 2 * ridge) / (4 * energy + ridge)
    assert_near(found, (u * s * times) @ vh)


def test_loras_that_share_nothing_are_added():
    """No output and no input is used by both."""
    loras = random_loras(2, shape=(8, 8), ranks=(2, 2))
    for lora, half in zip(loras, (slice(0, 4), slice(4, 8)), strict=True):
        layer, mask = lora.layers["layer"], torch.zeros(8)
        mask[half] = 1
        layer.up.mul_(mask[:, None])
        layer.down.mul_(mask)
    assert_near(merge(loras, None, "even").delta("layer"), matrices(loras).sum(0))


def test_weight_to_zero_is_leaving_out():
    loras = random_loras(3)
    without = merge(loras[:2], [0.7, -0.4], "even").delta("layer").double()
    assert torch.equal(merge(loras, [0.7, -0.4, 0.0], "even").delta("layer").double(), without)
    distances = [
        float((merge(loras, [0.7, -0.4, w], "even").delta("layer") - without).norm())
        for w in (1e-2, 1e-4, 1e-6)
    ]
    assert distances[0] > 50 * distances[1] > 2500 * distances[2] > 0


def test_a_high_ridge_gives_the_sum():
    loras = random_loras(3)
    assert_near(
        merge(loras, WEIGHTS[:3], "even", ridge=100).delta("layer"), matrices(loras, WEIGHTS[:3]).sum(0), 0.05
    )


def test_size_does_not_decide_who_has_a_say():
    """A LoRA of ten times the size is damped in the same proportion."""
    small, other = random_loras(2)
    large = Lora("large", {"layer": small.layers["layer"].scaled(10.0)})
    found = merge([large, other], None, "even").delta("layer")
    assert_near(found, dense_even([large, other], [1.0, 1.0], 1.0))
