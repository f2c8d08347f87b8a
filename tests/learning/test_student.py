"""The student: factors added to outputs do what the same factors do as changed weights."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from merge_ops import Lora, LowRank, merge
from merge_ops.learning.memory import Effort
from merge_ops.learning.student import Factors, added, starting_factors, trainable
from merge_ops.models.hosts import TransformersHost


class Mixed(nn.Module):
    """A module with a layer of every layout that a LoRA can act on."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.c_attn = Conv1D(10, 12)  # stores (in, out)
        self.fc = nn.Linear(10, 12)
        self.strided = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=1)
        self.reflected = nn.Conv2d(8, 4, (3, 1), padding=(1, 0), padding_mode="reflect")
        self.line = nn.Conv1d(12, 6, 3, padding="same")
        self.grouped = nn.Conv1d(6, 6, 3, groups=2)
        self.norm = nn.LayerNorm(12)

    def forward(self, numbers, image):
        text = self.norm(self.fc(self.c_attn(self.embed(numbers))))
        line = self.grouped(self.line(text.mT))
        return line.sum(dim=(1, 2)) + self.reflected(self.strided(image)).sum(dim=(1, 2, 3))


SHAPES = {
    "embed": ("embedding", 12, 11, ()),
    "c_attn": ("fan_in_fan_out", 10, 12, ()),
    "fc": ("linear", 12, 10, ()),
    "fc.bias": ("vector", 12, 1, ()),
    "strided": ("conv", 8, 27, (3, 3)),
    "strided.bias": ("vector", 8, 1, ()),
    "reflected": ("conv", 4, 24, (3, 1)),
    "line": ("conv", 6, 36, (3,)),
}


@pytest.fixture
def model():
    """The module, with inputs."""
    torch.manual_seed(0)
    return Mixed().requires_grad_(False)


@pytest.fixture
def inputs():
    """Numbers and images, two of each."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(11, (2, 7), generator=generator),
        torch.randn(2, 3, 9, 8, generator=generator),
    )


def as_factors(host, merged):
    """The layers of a merge as a student's factors and places."""
    generator = torch.Generator().manual_seed(0)
    pairs = {name: starting_factors(layer, 64, generator) for name, layer in merged.layers.items()}
    places = {name: trainable(host, name, layer.template) for name, layer in merged.layers.items()}
    assert None not in places.values()
    return Factors(pairs, torch.device("cpu")), places


@pytest.mark.parametrize("layer", [*SHAPES, None])
def test_equals_changed_weights(model, inputs, make_lora, layer):
    """For each layout alone, and for all of them at once."""
    shapes = SHAPES if layer is None else {layer: SHAPES[layer]}
    merged = merge([make_lora(shapes=shapes, rank=2), make_lora(shapes=shapes, rank=1, seed=3)], [0.7, -0.4])
    host = TransformersHost(model)
    before = model(*inputs)
    with host.applied(merged):
        wanted = model(*inputs)
    factors, places = as_factors(host, merged)
    with added(factors, places):
        given = model(*inputs)
    assert (given - wanted).abs().max() < 1e-4 < (wanted - before).abs().max()
    assert torch.equal(model(*inputs), before)


def test_wrong_flag_of_a_mixed_adapter(model, inputs):
    """PEFT has one ``fan_in_fan_out`` for all layers, here wrong for both; up and down are the same."""
    generator = torch.Generator().manual_seed(2)
    layers = {
        "c_attn": LowRank(torch.randn(10, 2, generator=generator), torch.randn(2, 12, generator=generator)),
        "fc": LowRank(
            torch.randn(12, 2, generator=generator), torch.randn(2, 10, generator=generator),
            layout="fan_in_fan_out",
        ),
    }  # fmt: skip
    host = TransformersHost(model)
    merged = merge([Lora("mixed", layers)])
    with host.applied(merged):
        wanted = model(*inputs)
    factors, places = as_factors(host, merged)
    with added(factors, places):
        assert (model(*inputs) - wanted).abs().max() < 1e-4


def test_some_rows_of_a_weight(model, make_lora):
    """A layer that is a slice of a fused weight, or rows of it in another order."""
    from merge_ops.learning.host import Site
    from merge_ops.learning.student import Trainable, _projected

    merged = merge([make_lora(shapes={"q": (4, 10)})])
    up, down = merged.factors("q")
    x = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(4))
    before = model.fc(x)
    for rows in (slice(4, 8), torch.tensor([7, 5, 4, 6])):
        place = Trainable(Site(model.fc, rows), _projected, is_last=True)
        with added(Factors({"q": (up, down)}, torch.device("cpu")), {"q": place}):
            given = model.fc(x)
        wanted = before.clone()
        wanted[..., rows] += x @ (up @ down).T
        assert torch.allclose(given, wanted, atol=1e-5)


def test_what_only_a_changed_weight_can_express(model, make_lora):
    """The weight of a norm, a convolution in groups, one matrix of a larger parameter, a missing layer."""
    host = TransformersHost(model)
    shapes = {
        "norm": ("vector", 12, 1, ()), "grouped": ("conv", 6, 9, (3,)), "fc.weight[2]": (12, 10),
        "gone": (4, 4),
    }  # fmt: skip
    for name, layer in make_lora(shapes=shapes, rank=1).layers.items():
        assert trainable(host, name, layer) is None, name


def test_a_rank_above_that_of_the_start(make_lora):
    """The new directions change nothing at first, and can be trained: their down is not 0."""
    merged = merge([make_lora(shapes={"fc": (12, 10)}, rank=2)])
    up, down = starting_factors(merged.layers["fc"], 5, torch.Generator().manual_seed(0))
    assert up.shape == (12, 5) and down.shape == (5, 10)
    assert torch.allclose(up @ down, merged.delta("fc"), atol=1e-5)
    assert not up[:, 2:].any() and down[2:].abs().min() > 0


class Stack(nn.Module):
    """Repeated blocks, as transformers and UNets have them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_less_memory_gives_the_same_gradients(make_lora):
    """Out of memory: half the samples at a time down to one, then recomputed blocks, then the refusal."""
    torch.manual_seed(0)
    model = Stack().requires_grad_(False)
    host = TransformersHost(model)
    merged = merge([make_lora(shapes={f"blocks.{i}.0": (8, 8) for i in range(3)}, rank=2)])
    factors, places = as_factors(host, merged)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    tried, passes = [], []

    def gradients():
        factors.zero_grad()
        with added(factors, places):
            model(x).square().sum().backward()
        return [each.grad.clone() for each in factors.parameters()]

    def run(size):
        tried.append(size)
        model.blocks[0][0].register_forward_hook(lambda *_: passes.append(size))
        found.append(gradients())
        if len(tried) < 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more\nand more")
        return 1.0

    found = [gradients()]
    effort = Effort(host, "model", places, batch=4)
    with effort:
        with pytest.raises(Exception, match="not enough memory to train with one sample"):
            effort.attempt(run)
        assert tried == [4, 2, 1, 1]
        assert effort.attempt(run) == 1.0
    assert effort.notes[-1].startswith("out of memory: activations are computed again")
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert passes.count(1) > passes.count(4)  # recomputed blocks run twice
    assert not any("forward" in vars(block) for block in model.blocks)
