"""The threshold of a delta that is never formed as a whole."""

import math
import weakref

import pytest
import torch

from merge_ops.merging import merge, spaces
from merge_ops.methods import thresholds
from merge_ops.methods.thresholds import bounds, magnitude_thresholds, product_thresholds


def factors(rows, columns, rank=8, seed=0):
    """Factors whose rows and columns are of very different sizes, as those of trained LoRAs are."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, rank, generator=generator) * torch.rand(rows, 1, generator=generator).exp()
    return up, torch.randn(rank, columns, generator=generator) * torch.rand(1, columns, generator=generator)


def product_threshold(up, down, density, height):
    return product_thresholds([(up, down)], density, height)[0]


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(700, 900), (3000, 200), (100, 5000)])
def test_it_keeps_exactly_the_share(shape, density):
    up, down = factors(*shape)
    threshold = product_threshold(up, down, density, height=64)
    magnitudes = (up.double() @ down.double()).abs()
    assert int((magnitudes >= threshold).sum()) == int(density * magnitudes.numel())
    assert threshold == pytest.approx(magnitude_thresholds([up @ down], density)[0], rel=1e-5)


def test_a_sample_that_misleads_is_noticed():
    """The rows that the sample looks at are tiny: the search is widened until the share is right."""
    up, down = factors(1280, 600)
    up[torch.linspace(0, 1279, 256).long()] *= 1e-4
    for density in (0.3, 0.95):
        threshold = product_threshold(up, down, density, height=64)
        assert threshold == pytest.approx(magnitude_thresholds([up @ down], density)[0], rel=1e-5)


def test_ties_and_zeros():
    """Half of the delta is zero, and the rest has one magnitude only."""
    up, down = torch.ones(1000, 1), torch.ones(1, 600)
    up[::2] = 0
    assert product_threshold(up, down, 0.25, height=64) == 1.0
    assert product_threshold(up, down, 0.75, height=64) == 0.0
    assert product_threshold(up, down, 0.0, height=64) == math.inf
    assert product_threshold(up, down, 1.0, height=64) == 0.0


def test_it_is_found_once_for_each_lora_and_density(make_lora, monkeypatch):
    """Another strength does not look for it again; another density, or a changed tensor, does."""
    found = []

    def counted(factors, *args):
        found.extend(factors)
        return product_thresholds(factors, *args)

    monkeypatch.setattr(spaces, "product_thresholds", counted)
    loras = [make_lora(name, shapes={"a": (20, 30), "b": (8, 8)}, seed=i) for i, name in enumerate("xy")]
    first = merge(loras, [1.0, 0.5], "ties", density=0.5)
    assert len(found) == 4
    merge(loras, [0.2, -1.0], "ties", density=0.5)
    assert len(found) == 4
    merge(loras, [1.0, 0.5], "ties", density=0.4)
    assert len(found) == 8
    loras[0].layers["a"].up.mul_(3)
    again = merge(loras, [1.0, 0.5], "ties", density=0.5)
    assert len(found) == 9
    assert again.layer("a").thresholds[0] == pytest.approx(3 * first.layer("a").thresholds[0], rel=1e-5)


def test_what_was_measured_belongs_to_the_layer(make_lora):
    """It is gone with the LoRA, and a layer made from another starts with nothing."""
    lora = make_lora("short-lived", shapes={"a": (20, 30)})
    merge([lora], [1.0], "ties")
    layer = lora.layers["a"]
    assert {key[0] for key in layer.measured} == {"threshold", "bound"}
    assert not layer.scaled(2.0).measured
    known = weakref.ref(layer)
    del lora, layer
    assert known() is None


def test_a_whole_delta_is_formed_only_where_it_is_small(monkeypatch):
    """Else the pass over tiles is what runs, and no full matrix is made."""
    seen = []
    monkeypatch.setattr(thresholds, "magnitude_thresholds", lambda *args: seen.append(args) or [0.0])
    up, down = factors(700, 900)
    assert product_threshold(up, down, 0.5, height=64) > 0
    assert not seen


def test_other_devices_select_the_same_two_entries():
    """What runs where there is no numpy: the entries on both sides of the cut, ties included."""
    up, down = factors(60, 70)
    ordered = (up @ down).abs().flatten().sort().values
    for dropped in (1, 2100, 4199):
        assert bounds(up @ down, dropped).tolist() == ordered[dropped - 1 : dropped + 1].tolist()
    assert bounds(torch.tensor([1.0, -1.0, 1.0, 0.5]), 2).tolist() == [1.0, 1.0]
