"""The laws that every registered method obeys; a new method is tested by being registered."""

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import merge_ops
from merge_ops import METHODS, Lora, merge_method
from merge_ops.merging import merge, scratch
from merge_ops.methods.registry import LAWS
from merge_ops.methods.sparsify import MaskGenerator, mask_key
from merge_ops.methods.thresholds import magnitude_thresholds
from tests.laws import skip_if_broken


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
NEW_NAMES = ("zeta", "yankee", "xray", "whiskey")


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


def alone(name, settings, stack, refactored):
    for weight in (1.0, 0.35, -0.8, 0.0):
        merged = merge(stack[:1], [weight], name, **settings)
        assert_close(deltas(merged), {k: weight * layer.delta() for k, layer in stack[0].layers.items()})


def full(name, settings, stack, refactored):
    alone(name, with_density(name, settings, 1.0), stack, refactored)


def order(name, settings, stack, refactored):
    """Files of one name too: Diffusers calls every file ``pytorch_lora_weights``."""
    same = [replace(lora, name="pytorch_lora_weights") for lora in stack]
    for loras, weights in ((stack[:3], WEIGHTS[:3]), (stack, WEIGHTS), (same, [1.0] * 4)):
        pairs = list(zip(loras, weights, strict=True))
        wanted = deltas(merge(*zip(*pairs, strict=True), name, **settings))
        for permuted in itertools.permutations(pairs):
            assert_same_bits(deltas(merge(*zip(*permuted, strict=True), name, **settings)), wanted)


def refactoring(name, settings, stack, refactored):
    """Nor does the name of the file matter."""
    wanted = deltas(merge(stack, WEIGHTS, name, **settings))
    rewritten = [
        refactored(lora, name=new, pad=pad, rescale=rescale, seed=pad)
        for lora, new, pad, rescale in zip(
            stack, NEW_NAMES, (0, 5, 1, 2), (1.0, 0.01, 30.0, 2.0), strict=True
        )
    ]
    assert_close(deltas(merge(rewritten, WEIGHTS, name, **settings)), wanted)


def sign(name, settings, stack, refactored):
    """For files of one name and for one LoRA twice, too."""
    same = [replace(lora, name="pytorch_lora_weights") for lora in (*stack[:3], stack[0])]
    for loras in (stack, same):
        wanted = deltas(merge(loras, WEIGHTS, name, **settings))
        negative = deltas(merge(loras, [-w for w in WEIGHTS], name, **settings))
        assert_same_bits({k: -v for k, v in negative.items()}, wanted)


def weighting(name, settings, stack, refactored):
    factors = (3.0, 0.25, 1.0, -2.0)
    scaled = [
        replace(lora, layers={k: layer.scaled(f) for k, layer in lora.layers.items()}, origin=lora)
        for lora, f in zip(stack, factors, strict=True)
    ]
    wanted = deltas(merge(scaled, WEIGHTS, name, **settings))
    weights = [w * f for w, f in zip(WEIGHTS, factors, strict=True)]
    assert_close(deltas(merge(stack, weights, name, **settings)), wanted)


def homogeneous(name, settings, stack, refactored):
    """Weights are absolute."""
    for factor in (3.7, -0.1, 0.0):
        wanted = {k: factor * v for k, v in deltas(merge(stack, WEIGHTS, name, **settings)).items()}
        assert_close(deltas(merge(stack, [factor * w for w in WEIGHTS], name, **settings)), wanted)
        assert_close(deltas(merge(stack, WEIGHTS, name, scale=factor, **settings)), wanted)


CHECKS = {check.__name__: check for check in (alone, full, order, refactoring, sign, weighting, homogeneous)}


def breaking(law, name, stack, refactored):
    """The settings in which a method really breaks a law."""
    broken = []
    for settings in settings_of(METHODS[name]):
        try:
            CHECKS[law](name, settings, stack, refactored)
        except AssertionError:
            broken.append(settings)
    return broken


def test_every_law_has_a_check():
    assert CHECKS.keys() == LAWS.keys()


@every_method
@pytest.mark.parametrize("law", LAWS)
def test_law(law, name, settings, stack, refactored):
    """A method keeps every law that it does not declare broken."""
    skip_if_broken(name, law)
    CHECKS[law](name, settings, stack, refactored)


DECLARED = [(name, law) for name, method in METHODS.items() for law in method.breaks]


@pytest.mark.parametrize(("name", "law"), DECLARED)
def test_a_law_that_is_declared_broken_is_broken(name, law, stack, refactored):
    """Otherwise the declaration is out of date."""
    assert breaking(law, name, stack, refactored), f"{name} keeps the law {law!r}: take it out of breaks"


@pytest.fixture
def first_leads():
    """A method that treats the first LoRA in another way, and says so; gone after the test."""

    @merge_method(
        "first_leads",
        "First leads",
        paper="arXiv:0000.00000",
        breaks={
            "order": "the first LoRA counts double",
            "sign": "not true",
            "alone": "it is doubled",
        },
    )
    def first_leads(deltas, weights):
        """Add the LoRAs, the first one twice."""
        return (deltas * weights.view(-1, *[1] * (deltas.ndim - 1))).sum(dim=0) + deltas[0] * weights[0]

    yield METHODS["first_leads"]
    del METHODS["first_leads"]


def test_a_method_may_declare_an_order(first_leads, stack, refactored):
    """It gets the LoRAs in the order of the list; its law is skipped with the reason."""
    assert breaking("order", "first_leads", stack, refactored)
    for i in range(3):
        loras, weights = (stack[i:] + stack[:i])[:2], [0.5, -1.0]
        merged = merge(loras, weights, "first_leads")
        wanted = {
            k: sum(
                w * lora.layers[k].delta() * (2 if lora is next(o for o in loras if k in o.layers) else 1)
                for lora, w in zip(loras, weights, strict=True)
                if k in lora.layers
            )
            for k in merged.layers
        }
        assert_close(deltas(merged), wanted)
    with pytest.raises(pytest.skip.Exception, match="'order': the first LoRA counts double"):
        skip_if_broken("first_leads", "order")


def test_a_declaration_must_be_true(first_leads, stack, refactored):
    """What is declared and holds is found, and so is what is broken and not declared."""
    assert breaking("alone", "first_leads", stack, refactored)
    assert not breaking("sign", "first_leads", stack, refactored), "declared broken, and kept"
    assert breaking("full", "first_leads", stack, refactored) and "full" not in first_leads.breaks
    with pytest.raises(ValueError, match=r"no law 'odrer' \(did you mean 'order'\?\)"):
        merge_method("typo", "Typo", paper="arXiv:0000.00000", breaks={"odrer": "a typing error"})


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
