"""What the result of a merge keeps in memory: its sources, and next to nothing besides."""

import pytest
import torch

from merge_ops import METHODS
from merge_ops.merging.merged import Merged
from tests.laws import merge


@pytest.fixture
def pair(make_lora):
    return [make_lora("a", rank=4, alpha=8, seed=1), make_lora("b", rank=5, alpha=3, seed=2)]


def tensors_of(value, seen):
    """Every tensor reachable from a record, through its slots, attributes and containers."""
    if isinstance(value, torch.Tensor):
        seen[value.untyped_storage().data_ptr()] = value
    elif isinstance(value, dict):
        for item in value.values():
            tensors_of(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            tensors_of(item, seen)
    elif type(value).__module__.startswith("merge_ops"):
        for slot in (*getattr(type(value), "__slots__", ()), *getattr(value, "__dict__", {})):
            tensors_of(getattr(value, slot), seen)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_result_holds_nothing_but_its_sources(method, pair):
    """Source factors and one number a LoRA and layer, or a core; a delta is made when it is asked for.

    Merged coordinates are kept as the factors that they are.
    """
    merged = merge(pair, [0.7, 0.3], method)
    kind = METHODS[method].kind
    sources = tensors_of([lora.layers for lora in pair], {})
    for _ in range(2):
        assert isinstance(merged, Merged)
        held = tensors_of(merged, {})
        assert sources.keys() <= held.keys()
        if kind != "coordinates":
            ranks = [sum(layer.aligned.ranks) for layer in merged.layers.values() if kind == "core"]
            made = sorted(tuple(held[key].shape) for key in held.keys() - sources.keys())
            assert made == sorted((rank, rank) for rank in ranks)
        for name in merged.layers:
            assert torch.equal(merged.delta(name), merged.delta(name))
        assert merged.report.layers
    for name in merged.layers:
        layer = merged.layer(name)
        assert (layer.fixed is None) == (kind != "coordinates")
        trims = "thresholds" in METHODS[method].supplied
        assert (layer.thresholds is not None) == trims
        assert all(isinstance(t, float) for t in layer.thresholds or ())
        assert (merged.factors(name) is None) == (kind == "entrywise" and method != "linear")
