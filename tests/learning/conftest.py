"""Fixtures of learning: the demo's diffusion model, and a recording of two of its LoRAs."""

import pytest
import torch

from merge_ops import learning
from merge_ops.demo.measure import Studio
from merge_ops.demo.model import sample
from merge_ops.demo.plan import LORAS
from merge_ops.models.hosts import DiffusersHost

NAMES = ("six", "neon")


@pytest.fixture(scope="session")
def studio():
    """The demo's model, judge and LoRAs."""
    return Studio(count=16, seed=5)


@pytest.fixture
def unchanged(studio):
    """After a test the model has the same weights, bit for bit, and no hooks."""
    before = dict(studio.unet.named_parameters())
    bits = {name: value.clone() for name, value in before.items()}
    yield
    for name, value in studio.unet.named_parameters():
        assert value is before[name] and torch.equal(value, bits[name]) and not value.requires_grad, name
    hooks = [module for module in studio.unet.modules() if module._forward_hooks or "forward" in vars(module)]
    assert not hooks


@pytest.fixture(scope="session")
def host(studio):
    """The demo's UNet as a host."""
    return DiffusersHost(studio.unet)


@pytest.fixture(scope="session")
def pair(studio):
    """Two LoRAs: a subject and a style."""
    return [studio.loras[name] for name in NAMES]


@pytest.fixture(scope="session")
def draw(studio):
    """Draw prompts, ``count`` images each in 3 steps, and return nothing: for recordings."""

    def draw(prompts, count=4, seed=70):
        sample(studio.unet, studio.tokens, prompts, count, seed, steps=3)

    return draw


@pytest.fixture(scope="session")
def record(host, draw):
    """Record LoRAs of the demo, each on its own prompt; keywords go to ``learning.record``."""

    def record(loras, **options):
        prompts = {name: prompt for name, (_, prompt) in LORAS.items()}
        return learning.record(host, loras, lambda lora: draw([prompts[lora.name]]), **options)

    return record


@pytest.fixture(scope="session")
def recording(record, draw, pair):
    """Two LoRAs, prompts to keep, and one that needs both."""
    return record(
        pair, keep=lambda: draw([(0, "plain"), (3, "plain")], 2), together=lambda: draw([(6, "neon")]), seed=1
    )
