"""Retention: the formula by hand, and its ends."""

import pytest
import torch

from merge_ops import ParameterError, learning, merge
from merge_ops.models.diffusers import patched

pytestmark = pytest.mark.usefixtures("unchanged")


def answers(studio, samples, merged=None):
    """What the model answers to each sample, one at a time."""

    def run():
        with torch.no_grad():
            return torch.cat([studio.unet(*s.args, **s.kwargs)[0] for s in samples])

    if merged is None:
        return run()
    with patched(studio.unet, merged):
        return run()


def test_formula(recording, host, studio, pair):
    """``1 - |f_merged - f_lora|^2 / |f_base - f_lora|^2`` over the held-out calls of each LoRA."""
    merged = merge(pair, [0.8, 0.6], "ties")
    seen = learning.retention(recording, host, merged)
    distances = []
    for role, name in enumerate(recording.labels):
        samples = recording.part(role=role, held_out=True)
        wanted = torch.cat([sample.output for sample in samples])
        error = (answers(studio, samples, merged) - wanted).square().sum()
        distance = (answers(studio, samples) - wanted).square().sum()
        distances.append(distance / len(samples))
        assert seen.loras[name] == pytest.approx(1 - float(error / distance), abs=1e-4)
    assert seen.worst == min(seen.loras.values()) and seen.mean == sum(seen.loras.values()) / 2
    for role, value in (("keep", seen.keep), ("together", seen.together)):
        samples = recording.part(role=role, held_out=True)
        wanted = torch.cat([sample.output for sample in samples])
        change = (answers(studio, samples, merged) - wanted).square().sum() / len(samples)
        assert value == pytest.approx(float(change / (sum(distances) / 2)), rel=1e-3)


def test_ends(recording, host, pair):
    """A LoRA keeps all of itself, and the base nothing; the sum answers the prompts together as recorded."""
    six, neon = (learning.retention(recording, host, merge([lora])).loras for lora in pair)
    assert six["six"] == pytest.approx(1, abs=1e-6) and neon["neon"] == pytest.approx(1, abs=1e-6)
    base = learning.retention(recording, host, None)
    assert base.loras == pytest.approx({"six": 0, "neon": 0}, abs=1e-6) and base.keep < 1e-9 < base.together
    assert learning.retention(recording, host, merge(pair)).together < 1e-9


def test_best_scale(recording, host, pair):
    """The scale at which most is kept, with what every scale keeps."""
    scale, tried = learning.best_scale(
        recording, host, lambda scale: merge(pair, scale=scale), (0.25, 0.9, 3.0)
    )
    assert scale == 0.9 == max(tried, key=lambda each: tried[each].mean) and list(tried) == [0.25, 0.9, 3.0]
    with pytest.raises(ParameterError, match="no scale"):
        learning.best_scale(recording, host, lambda scale: merge(pair), ())


def test_without_held_out_calls(record, host, pair):
    """Nothing can be measured on calls that were learned from."""
    with pytest.raises(ParameterError, match="no calls held out"):
        learning.retention(record(pair, held_out=0), host, merge(pair))
