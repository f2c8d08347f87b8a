"""What the tests of the laws share: a case for each method and choice, and comparisons of merges."""

import itertools

import pytest
import torch

from merge_ops import METHODS


def settings_of(method):
    """Every combination of a method's choices, with the numbers at their defaults."""
    options = [[(p.name, c) for c in p.choices] for p in method.params if p.choices]
    return [dict(combination) for combination in itertools.product(*options)]


CASES = [
    pytest.param(name, settings, id="-".join((name, *settings.values())))
    for name, method in METHODS.items()
    for settings in settings_of(method)
]
every_method = pytest.mark.parametrize(("name", "settings"), CASES)
WEIGHTS = [0.7, -0.4, 1.3, 0.2]


def with_density(name, settings, density):
    has_one = any(p.name == "density" for p in METHODS[name].params)
    return {**settings, "density": density} if has_one else settings


def deltas(merged):
    return {name: merged.delta(name) for name in merged.layers}


def assert_close(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        error = torch.linalg.vector_norm(found[name].double() - delta.double())
        limit = tolerance * float(torch.linalg.vector_norm(delta.double()))
        assert float(error) <= limit, f"{name}: {error} > {limit}"


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        assert torch.equal(found[name], delta), name


def skip_if_broken(name, *laws):
    """Skip, with the method's own reason, where it declares that it does not keep one of the laws."""
    for law in laws:
        if law in METHODS[name].breaks:
            pytest.skip(f"{name} does not keep the law {law!r}: {METHODS[name].breaks[law]}")
