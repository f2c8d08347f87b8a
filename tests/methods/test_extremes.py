"""Numbers at the ends of their ranges: a result is finite, or refused with a sentence; it is never NaN."""

import pytest
import torch

from merge_ops import METHODS, Lora, LowRank, MergeError
from tests.laws import merge

DENSITIES = (5e-324, 1e-300, 1e-46, 1e-38, 1e-10, 7e-6, 1e-5, 0.5, 1 - 1e-10, 1 - 2**-53, 1.0, 0.0)
NUMBERS = (5e-324, 1e-300, 1e-40, 1e-10, 0.5, 1 - 2**-53, 1.0, 0.0, 1e30, 1e300)
FACTORS = (5e-324, 1e-40, 1e-30, 1e-10, 1e10, 1e25, 1e30, 1e38, 1e300)
SIZES = (1e-40, 1e-30, 1e-22, 1e-15, 1e-8, 1e5, 1e10, 1e15, 1e18)


def lora(name, seed, size=1.0, down=None):
    """A matrix and a bias whose factors have about the given sizes."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(20, 3, generator=generator) * size
    down = torch.randn(3, 30, generator=generator) * (size if down is None else down)
    bias = LowRank(torch.randn(40, 1, generator=generator) * size, torch.ones(1, 1), 1.0, "vector")
    return Lora(name, {"block.fc": LowRank(up, down), "block.fc.bias": bias})


def stack(name, size=1.0):
    count = 2 if name in ("np", "slerp") else 3
    return [lora(str(seed), seed, size) for seed in range(count)]


def check(loras, weights, name, rank=None, scale=1.0, **params):
    try:
        merged = merge(loras, weights, name, rank=rank, scale=scale, **params)
        deltas = [merged.delta(layer) for layer in merged.layers]
    except MergeError:
        return
    assert all(bool(torch.isfinite(delta).all()) for delta in deltas), (weights, rank, scale, params)


@pytest.mark.parametrize("name", METHODS)
def test_parameters(name):
    for param in METHODS[name].params:
        values = param.choices or (DENSITIES if param.name == "density" else NUMBERS)
        for value in values if param.type is not int else (1, 2, 10**6):
            for rank in (None, 2):
                check(stack(name), None, name, rank, **{param.name: value})


@pytest.mark.parametrize("name", METHODS)
def test_weights_and_scales(name):
    loras = stack(name)
    for factor in FACTORS:
        for rank in (None, 2):
            check(loras, [factor] * len(loras), name, rank)
            check(loras, [factor, *[1.0] * (len(loras) - 1)], name, rank)
            check(loras, None, name, rank, factor)


@pytest.mark.parametrize("name", METHODS)
def test_sizes_of_loras(name):
    thin = {"density": 0.01} if any(param.name == "density" for param in METHODS[name].params) else {}
    for size in SIZES:
        for loras in (
            stack(name, size),
            [lora("x", 9, size), *stack(name)[1:]],
            [lora("x", 9, size, 1 / size), *stack(name)[1:]],
        ):
            check(loras, None, name, **thin)
            check(loras, None, name, 2)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della"])
def test_a_density_below_what_masks_can_draw_gives_zero(name):
    for density in (5e-324, 1e-10, 7e-6):
        merged = merge(stack(name), None, name, density=density)
        assert not any(merged.delta(layer).any() for layer in merged.layers)
