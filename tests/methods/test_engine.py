"""What holds for every method because of the engine: randomness, tiles, threads, batches, odd input."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import merge_ops
from merge_ops import METHODS, Lora
from merge_ops.merging import scratch
from merge_ops.methods.masks import MaskGenerator, mask_key
from merge_ops.methods.thresholds import magnitude_thresholds
from tests.laws import (
    CASES,
    WEIGHTS,
    assert_close,
    assert_same_bits,
    deltas,
    every_method,
    merge,
    with_density,
)

of_entries = pytest.mark.parametrize(
    ("name", "settings"), [case for case in CASES if METHODS[case.values[0]].kind != "core"]
)


@every_method
@pytest.mark.parametrize("rank", [None, 3])
def test_law_7_no_global_randomness_is_read_or_written(name, settings, rank, stack):
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        results.append(deltas(merge(stack, WEIGHTS, name, rank=rank, **settings)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])
        assert random.getstate() == before[2]
    assert_same_bits(*results)


def kept_entries(merged):
    return {name: merged.delta(name) != 0 for name in merged.layers}


@every_method
def test_law_7_masks_do_not_depend_on_tiles(name, settings, make_lora, monkeypatch):
    loras = [make_lora(n, shapes={"wide": (75, 130), "tall": (211, 37)}, seed=i) for i, n in enumerate("ab")]
    merged = merge(loras, [1.0, 0.5], name, **settings)
    wanted, masks = deltas(merged), kept_entries(merged)
    for tile in (1, 130, 1000, 1 << 12):
        monkeypatch.setattr(scratch, "_TILE_ON_CPU", tile)
        again = merge(loras, [1.0, 0.5], name, **settings)
        assert_same_bits(kept_entries(again), masks)
        assert_close(deltas(again), wanted, 1e-6)


@every_method
def test_law_7_masks_do_not_depend_on_threads(name, settings, make_lora):
    loras = [make_lora(n, shapes={"layer": (200, 400)}, rank=8, seed=i) for i, n in enumerate("ab")]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        merged = merge(loras, [1.0, 0.5], name, **settings)
        wanted, masks = deltas(merged), kept_entries(merged)
        torch.set_num_threads(2)
        again = merge(loras, [1.0, 0.5], name, **settings)
        assert_same_bits(kept_entries(again), masks)
        assert_close(deltas(again), wanted, 1e-6)
    finally:
        torch.set_num_threads(threads)


@of_entries
@pytest.mark.parametrize("give_thresholds", [False, True])
def test_batched_equals_layer_by_layer(name, settings, give_thresholds):
    """Dim 0 is the LoRA, the last two dims are the matrix, and what lies between is batch."""
    method = METHODS[name]
    values = torch.randn(3, 5, 12, 20, generator=torch.Generator().manual_seed(0))  # (n, batch, out, in)
    weights = torch.tensor([0.7, -0.4, 1.3])
    params = method.resolve(settings)
    keys = [mask_key(0, "layer", who) for who in "abc"]
    limits = {}
    if give_thresholds and "thresholds" in method.supplied:
        dropped = params.get("outliers", 0.0)
        shares = {"thresholds": params["density"] + dropped, "ceilings": dropped}
        for cut in shares.keys() & set(method.supplied):
            found = [magnitude_thresholds([m], shares[cut])[0] for m in values.flatten(0, 1)]
            limits[cut] = torch.tensor(found).view(3, 5, 1, 1)

    def call(some, given, first):
        offered = {**given, "generator": MaskGenerator(keys, first), "overwrite": False}
        return method.fn(some, weights, **params, **{s: offered[s] for s in method.supplied if s in offered})

    batched = call(values, limits, 0)
    assert batched.shape == (5, 12, 20)
    for i in range(5):
        alone = call(values[:, i], {cut: of[:, i] for cut, of in limits.items()}, i * 12 * 20)
        torch.testing.assert_close(batched[i], alone, rtol=1e-6, atol=1e-6)


@every_method
@pytest.mark.parametrize("density", [0.0, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("rank", [None, 4])
def test_degenerate_input_stays_finite(name, settings, density, rank, make_lora):
    """Zero LoRAs, the same LoRA twice, and factors that do not have the rank they claim."""
    shapes = {"small": (30, 22), "large": (90, 120)}
    plain, zero, poor = (make_lora(n, shapes=shapes, seed=i) for i, n in enumerate(("plain", "zero", "poor")))
    zero = Lora("zero", {k: replace(v, up=v.up * 0) for k, v in zero.layers.items()})
    poor = Lora("poor", {k: replace(v, up=v.up[:, :1].repeat(1, 4)) for k, v in poor.layers.items()})
    params = with_density(name, settings, density)
    for loras in ([zero], [zero, zero], [plain, plain], [plain, zero, poor], [poor, poor, zero]):
        merged = merge(loras, None, name, rank=rank, **params)
        for layer in merged.layers:
            found = merged.delta(layer)
            assert bool(found.isfinite().all())
            if (params.get("density") == 0) or all(lora is zero for lora in loras):
                assert not found.any()
        assert all(0 <= row.energy_kept <= 1 for row in merged.report.layers)


@pytest.mark.parametrize("name", METHODS)
def test_declaration_is_complete(name):
    method = METHODS[name]
    assert method.name == name
    assert getattr(merge_ops.methods.registry, "METHODS", None) is METHODS
    assert method.resolve({}) == {p.name: p.default for p in method.params}, "a default is out of range"
    assert method.title and method.summary.endswith(".")
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", method.paper)
    for param in method.params:
        assert len(param.help) > 10
        assert param.choices or (param.min is not None and param.max is not None)


@of_entries
def test_overwriting_gives_the_same_and_not_overwriting_leaves_the_input(name, settings):
    method = METHODS[name]
    values = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0))
    before, weights = values.clone(), torch.tensor([0.7, -0.4, 1.3])
    keys = [mask_key(0, "layer", who) for who in "abc"]

    def call(overwrite):
        offered = {"generator": MaskGenerator(keys), "overwrite": overwrite}
        supplied = {s: offered[s] for s in method.supplied if s in offered}
        return method.fn(values, weights, **method.resolve(settings), **supplied)

    kept = call(False)
    assert torch.equal(values, before)
    assert torch.equal(call(True), kept)
