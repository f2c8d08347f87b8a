"""The laws that every registered method obeys; a new method is tested by being registered."""

import itertools
from dataclasses import replace

import pytest
import torch

from merge_ops import METHODS, merge_method
from merge_ops.methods.registry import LAWS
from tests.laws import (
    WEIGHTS,
    assert_close,
    assert_same_bits,
    deltas,
    every_method,
    merge,
    settings_of,
    skip_if_broken,
    with_density,
)

NEW_NAMES = ("zeta", "yankee", "xray", "whiskey")


def alone_at_every_density(name, settings, stack, refactored):
    for weight in (1.0, 0.35, -0.8, 0.0):
        merged = merge(stack[:1], [weight], name, **settings)
        assert_close(deltas(merged), {k: weight * layer.delta() for k, layer in stack[0].layers.items()})


def alone_at_density_1(name, settings, stack, refactored):
    alone_at_every_density(name, with_density(name, settings, 1.0), stack, refactored)


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


CHECKS = {
    check.__name__: check
    for check in (
        alone_at_density_1,
        alone_at_every_density,
        order,
        refactoring,
        sign,
        weighting,
        homogeneous,
    )
}


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
            "alone_at_every_density": "it is doubled",
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
    assert breaking("alone_at_every_density", "first_leads", stack, refactored)
    assert not breaking("sign", "first_leads", stack, refactored), "declared broken, and kept"
    assert (
        breaking("alone_at_density_1", "first_leads", stack, refactored)
        and "alone_at_density_1" not in first_leads.breaks
    )
    with pytest.raises(ValueError, match=r"no law 'odrer' \(did you mean 'order'\?\)"):
        merge_method("typo", "Typo", paper="arXiv:0000.00000", breaks={"odrer": "a typing error"})


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.linear])
def test_law_5_linear_methods_equal_chained_loading(name, stack):
    wanted: dict[str, torch.Tensor] = {}
    for lora, weight in zip(stack, WEIGHTS, strict=True):
        for key, layer in lora.layers.items():
            wanted[key] = wanted.get(key, 0) + weight * layer.delta().double()
    assert_close(deltas(merge(stack, WEIGHTS, name)), wanted, 1e-6)
