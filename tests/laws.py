"""What the tests of the laws share: a case for each method and choice, and comparisons of merges."""

import itertools
import zlib

import pytest
import torch

from merge_ops import METHODS, merging
from merge_ops.merging.align import align
from merge_ops.merging.cores import stacked_factors
from merge_ops.merging.fingerprint import fingerprint
from merge_ops.merging.request import Request

ENTRYWISE = [name for name, method in METHODS.items() if method.kind == "entrywise"]
WITHOUT_RECORDING = [name for name, method in METHODS.items() if not method.needs_recording]


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


def moments_of(loras, weights=None, method="linear", **more):
    """What a recording would hold: inputs that depend on the LoRA and on the layer, 40 of each."""
    request = Request.of(loras, weights, method, **more)
    marks = [fingerprint(lora) for lora in loras]
    moments = {}
    for aligned in align(loras, request):
        _, down, _ = stacked_factors(aligned, None)
        seen = []
        for index in aligned.indices:
            seed = zlib.crc32(f"{aligned.name} {marks[index]}".encode())
            inputs = torch.randn(down.shape[1], 40, generator=torch.Generator().manual_seed(seed)).double()
            z = down.double() @ inputs  # (R, inputs)
            seen.append(z @ z.T / inputs.shape[1])
        moments[aligned.name] = torch.stack(seen)
    return moments


def merge(loras, weights=None, method=None, **more):
    """``merge_ops.merge``; a method that needs a recording gets the moments of one."""
    if method in METHODS and METHODS[method].needs_recording:
        used = {name: more[name] for name in ("text_weights", "blocks") if name in more}
        more["moments"] = moments_of(loras, weights, method, **used)
    return merging.merge(loras, weights, method, **more)


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
