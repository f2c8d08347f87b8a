"""The laws that every registered method obeys; a new method is tested by being registered."""

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import merge_ops
from merge_ops import METHODS, Lora
from merge_ops.merging import merge, scratch
from merge_ops.methods.sparsify import MaskGenerator, mask_key
from merge_ops.methods.thresholds import magnitude_thresholds


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


@every_method
@pytest.mark.parametrize("weight", [1.0, 0.35, -0.8, 0.0])
def test_law_1_alone_at_weight_w_is_w_times_the_delta(name, settings, weight, make_lora):
    lora = make_lora(rank=3, alpha=7, seed=5)
    merged = merge([lora], [weight], name, **with_density(name, settings, 1.0))
    assert_close(deltas(merged), {k: weight * layer.delta() for k, layer in lora.layers.items()})


@every_method
def test_law_2_order_of_the_stack_changes_nothing(name, settings, stack):
    for count in (3, 4):
        pairs = list(zip(stack[:count], WEIGHTS, strict=False))
        wanted = deltas(merge(*zip(*pairs, strict=True), name, **settings))
        for order in itertools.permutations(pairs):
            assert_same_bits(deltas(merge(*zip(*order, strict=True), name, **settings)), wanted)


@every_method
def test_law_2_holds_for_files_of_one_name_and_weight(name, settings, stack):
    """Diffusers calls every file ``pytorch_lora_weights``, so names often do not tell LoRAs apart."""
    same = [replace(lora, name="pytorch_lora_weights") for lora in stack]
    wanted = deltas(merge(same, None, name, **settings))
    for order in itertools.permutations(same):
        assert_same_bits(deltas(merge(order, None, name, **settings)), wanted)


@every_method
def test_law_3_rank_alpha_factors_and_file_name_do_not_matter(name, settings, stack, refactored):
    wanted = deltas(merge(stack, WEIGHTS, name, **settings))
    rewritten = [
        refactored(lora, name=new, pad=pad, rescale=rescale, seed=pad)
        for lora, new, pad, rescale in zip(stack, "zyxw", (0, 5, 1, 2), (1.0, 0.01, 30.0, 2.0), strict=True)
    ]
    assert_close(deltas(merge(rewritten, WEIGHTS, name, **settings)), wanted)


@every_method
def test_law_4_negative_weights_give_the_negative(name, settings, stack):
    wanted = deltas(merge(stack, WEIGHTS, name, **settings))
    negative = deltas(merge(stack, [-w for w in WEIGHTS], name, **settings))
    assert_same_bits({k: -v for k, v in negative.items()}, wanted)


@every_method
def test_law_4_holds_for_files_of_one_name_and_for_one_lora_twice(name, settings, stack):
    same = [replace(lora, name="pytorch_lora_weights") for lora in (*stack[:3], stack[0])]
    wanted = deltas(merge(same, WEIGHTS, name, **settings))
    negative = deltas(merge(same, [-w for w in WEIGHTS], name, **settings))
    assert_same_bits({k: -v for k, v in negative.items()}, wanted)


@every_method
@pytest.mark.parametrize("factor", [3.7, -0.1, 0.0])
def test_weights_and_scale_are_homogeneous(name, settings, factor, stack):
    """Weights are absolute: a factor on all of them, or on ``scale``, is a factor on the result."""
    wanted = {k: factor * v for k, v in deltas(merge(stack, WEIGHTS, name, **settings)).items()}
    assert_close(deltas(merge(stack, [factor * w for w in WEIGHTS], name, **settings)), wanted)
    assert_close(deltas(merge(stack, WEIGHTS, name, scale=factor, **settings)), wanted)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.linear])
def test_law_5_linear_methods_equal_chained_loading(name, stack):
    wanted: dict[str, torch.Tensor] = {}
    for lora, weight in zip(stack, WEIGHTS, strict=True):
        for key, layer in lora.layers.items():
            wanted[key] = wanted.get(key, 0) + weight * layer.delta().double()
    assert_close(deltas(merge(stack, WEIGHTS, name)), wanted, 1e-6)


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


@every_method
@pytest.mark.parametrize("give_thresholds", [False, True])
def test_batched_equals_layer_by_layer(name, settings, give_thresholds):
    """Dim 0 is the LoRA, the last two dims are the matrix, and what lies between is batch."""
    method = METHODS[name]
    values = torch.randn(3, 5, 12, 20, generator=torch.Generator().manual_seed(0))  # (n, batch, out, in)
    weights = torch.tensor([0.7, -0.4, 1.3])
    params = method.resolve(settings)
    keys = [mask_key(0, "layer", who) for who in "abc"]
    limits = None
    if give_thresholds and "density" in params:
        found = [magnitude_thresholds([m], params["density"])[0] for m in values.flatten(0, 1)]
        limits = torch.tensor(found).view(3, 5, 1, 1)

    def call(some, thresholds, first):
        offered = {"thresholds": thresholds, "generator": MaskGenerator(keys, first), "overwrite": False}
        return method.fn(some, weights, **params, **{s: offered[s] for s in method.supplied})

    batched = call(values, limits, 0)
    assert batched.shape == (5, 12, 20)
    for i in range(5):
        alone = call(values[:, i], None if limits is None else limits[:, i], i * 12 * 20)
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


@every_method
def test_overwriting_gives_the_same_and_not_overwriting_leaves_the_input(name, settings):
    method = METHODS[name]
    values = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0))
    before, weights = values.clone(), torch.tensor([0.7, -0.4, 1.3])
    keys = [mask_key(0, "layer", who) for who in "abc"]

    def call(overwrite):
        offered = {"thresholds": None, "generator": MaskGenerator(keys), "overwrite": overwrite}
        supplied = {s: offered[s] for s in method.supplied}
        return method.fn(values, weights, **method.resolve(settings), **supplied)

    kept = call(False)
    assert torch.equal(values, before)
    assert torch.equal(call(True), kept)
