"""The threshold of a delta that is never formed as a whole."""

import math
import weakref

import pytest
import torch

from merge_ops.merging import merge, spaces
from merge_ops.methods import thresholds
from merge_ops.methods.thresholds import (
    bounds,
    bracketed,
    magnitude_thresholds,
    product_thresholds,
    stack_thresholds,
)
from tests.launches import Launches


def factors(rows, columns, rank=8, seed=0):
    """Factors whose rows and columns are of very different sizes, as those of trained LoRAs are."""
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(rows, rank, generator=generator) * torch.rand(rows, 1, generator=generator).exp()
    return up, torch.randn(rank, columns, generator=generator) * torch.rand(1, columns, generator=generator)


def product_threshold(up, down, density, height):
    room = torch.empty(height, down.shape[1])  # for one tile
    return product_thresholds([(up, down)], density, height, room)[0]


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


@pytest.mark.parametrize("density", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("shape", [(700, 900), (3000, 200), (20, 30), (1, 5000), (5000, 1)])
def test_other_devices_find_the_same_two_entries(shape, density):
    """What runs where the host should not wait, from a sample and what lies between two of its entries."""
    up, down = factors(*shape)
    ordered = (up @ down).abs().flatten().sort().values
    dropped = len(ordered) - int(density * len(ordered))
    if not dropped or dropped == len(ordered):
        return
    *found, is_sure = bracketed(up, down, dropped).tolist()
    assert is_sure and found == ordered[dropped - 1 : dropped + 1].tolist()


def test_other_devices_notice_a_sample_that_misleads():
    """One row has all that is large, and the sample of these groups sees little of it."""
    up, down = factors(1280, 640, rank=1)
    down[:, ::32] *= 1e3
    up[::32] *= 1e3
    for dropped in (640 * 1280 - 700, 640 * 1280 - 1):
        *found, is_sure = bracketed(up, down, dropped).tolist()
        ordered = (up @ down).abs().flatten().sort().values
        assert not is_sure or found == ordered[dropped - 1 : dropped + 1].tolist()
    up, down = torch.ones(1000, 1), torch.ones(1, 600)
    assert bracketed(up, down, 300_000).tolist()[2] == 0, "all are alike: nothing lies below the upper one"


def test_other_devices_need_few_launches_and_no_wait():
    """Until what was found for all LoRAs of a layer is read; whatever the density."""
    up, down = factors(700, 900)
    for dropped in (6300, 315_000):
        with Launches() as seen:
            bracketed(up, down, dropped)
        assert not seen.waits and len(seen.launches) <= 36, seen.launches


def test_a_stack_has_the_thresholds_of_its_matrices():
    values = torch.randn(3, 2, 40, 30, generator=torch.Generator().manual_seed(3))
    for density in (0.0, 0.3, 0.5, 1.0):
        wanted = magnitude_thresholds(values.flatten(0, 1).unbind(), density)
        assert stack_thresholds(values, density).flatten().tolist() == pytest.approx(wanted, rel=1e-7)


def test_other_devices_select_the_same_two_entries():
    """What runs where there is no numpy: the entries on both sides of the cut, ties included."""
    up, down = factors(60, 70)
    ordered = (up @ down).abs().flatten().sort().values
    for dropped in (1, 2100, 4199):
        assert bounds(up @ down, dropped).tolist() == ordered[dropped - 1 : dropped + 1].tolist()
    assert bounds(torch.tensor([1.0, -1.0, 1.0, 0.5]), 2).tolist() == [1.0, 1.0]
