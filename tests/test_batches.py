"""Layers of one shape merged together give what each gives alone."""

import pytest
import torch

from merge_ops import Lora
from merge_ops.merging import merge
from merge_ops.merging.align import align
from merge_ops.merging.batches import group_into_batches, merge_batch
from merge_ops.merging.request import Request, Settings

ELSEWHERE = torch.device("meta")  # any device that is not the CPU
SHAPES = {f"layer.{i}": (40, 30) if i % 3 else (24, 50) for i in range(8)}
CASES = {
    "linear": ("linear", {}, "factors", None),
    "ties": ("ties", {"density": 0.4}, "factors", None),
    "magnitude_prune": ("magnitude_prune", {"density": 0.4}, "factors", None),
    "svd": ("linear", {}, "delta", 3),
}


@pytest.fixture(scope="module")
def loras(make_lora):
    return [make_lora(name, shapes=SHAPES, rank=4, alpha=2, seed=i) for i, name in enumerate("abc")]


def _only(lora, name):
    return Lora(lora.name, {name: lora.layers[name]})


@pytest.mark.parametrize("case", CASES)
def test_together_as_alone(case, loras):
    method, params, space, rank = CASES[case]
    weights = [0.7, -0.4, 1.2]
    settings = Settings.of(method, params, space=space, rank=rank, scale=1.5)
    aligned = align(loras, Request.of(loras, weights))
    groups = list(group_into_batches(aligned, settings, ELSEWHERE))
    assert sorted(len(group) for group in groups) == [3, 5]
    assert sorted(layer.name for group in groups for layer in group) == sorted(SHAPES)
    alone = [
        {
            name: merge(
                [_only(lora, name) for lora in loras],
                weights,
                method,
                space=space,
                rank=rank,
                scale=1.5,
                **params,
            )
        }
        for name in SHAPES
    ]
    wanted = {name: merged for each in alone for name, merged in each.items()}
    for group in groups:
        for layer in merge_batch(group, settings, torch.device("cpu"), torch.float32):
            exact = wanted[layer.aligned.name].delta(layer.aligned.name)
            torch.testing.assert_close(layer.matrix(), exact, rtol=1e-4, atol=1e-5)
            assert layer.energy_kept == pytest.approx(
                wanted[layer.aligned.name].layer(layer.aligned.name).energy_kept, rel=1e-6
            )


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "ties"])
def test_masks_are_those_of_each_layer(loras, method):
    """The same bits as layer by layer: masks depend on the LoRA as a whole, but not on the batch."""
    settings = Settings.of(method, {"density": 0.4}, space="factors")
    for group in group_into_batches(align(loras, Request.of(loras, [0.7, -0.4, 1.2])), settings, ELSEWHERE):
        together = merge_batch(group, settings, torch.device("cpu"), torch.float32)
        for layer, one in zip(group, together, strict=True):
            (alone,) = merge_batch([layer], settings, torch.device("cpu"), torch.float32)
            assert all(map(torch.equal, one.factors(), alone.factors())), layer.name


def test_what_is_not_batched(loras, make_lora):
    """Full deltas, decompositions on the CPU; other weights or scales go apart."""
    weights = [1.0, 1.0, 1.0]
    aligned = align(loras, Request.of(loras, weights))
    for name, params, space, rank, device in (
        ("ties", {}, "delta", 3, ELSEWHERE),
        ("dare_linear", {}, "delta", None, ELSEWHERE),
        ("linear", {}, "delta", 3, torch.device("cpu")),
        ("linear", {}, "delta", 3, None),
    ):
        settings = Settings.of(name, params, space=space, rank=rank)
        assert [len(group) for group in group_into_batches(aligned, settings, device)] == [1] * 8
    other = make_lora("d", shapes={"layer.1": (40, 30)}, rank=4, alpha=1, seed=9)
    settings = Settings.of("linear", {}, space="factors")
    mixed = align([*loras, other], Request.of([*loras, other]))
    assert sorted(len(g) for g in group_into_batches(mixed, settings, ELSEWHERE)) == [1, 3, 4]


def test_the_order_of_the_layers_stays(loras):
    """Whatever is merged first, the result lists its layers in counting order."""
    assert list(merge(loras, rank=2).layers) == sorted(SHAPES)
