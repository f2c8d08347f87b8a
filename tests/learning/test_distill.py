"""Distilling: it keeps more than the sum, for a seed always the same bits, and leaves the base alone."""

from copy import deepcopy

import pytest
import torch

import merge_ops
from merge_ops import IncompatibleLoraError, MergeError, ParameterError, learning, merge
from merge_ops.demo.model import STYLES, prompt
from merge_ops.demo.plan import LORAS
from merge_ops.models.hosts import DiffusersHost

pytestmark = pytest.mark.usefixtures("unchanged")
FOUR = ("six", "seven", "neon", "slant")


@pytest.fixture(scope="module")
def four(studio):
    """Four LoRAs that spoil each other when they are added."""
    return [studio.loras[name] for name in FOUR]


@pytest.fixture(scope="module")
def recorded(record, draw, four):
    """Their recording."""
    return record(four, keep=lambda: draw([(0, "plain"), (2, "plain")], 2))


def seen_at(marks):
    """A callback that gathers what was measured."""
    return lambda progress: progress.retention and marks.append(progress)


def test_keeps_more_than_the_sum(recorded, host, four, studio):
    """On calls that were held out, and in drawings that a judge accepts, of other noise."""
    marks = []
    distilled = learning.distill(recorded, host, four[::-1], steps=30, batch=24, progress=seen_at(marks))
    kept, plain = (learning.retention(recorded, host, each) for each in (distilled, merge(four)))
    assert kept.mean > 0.85 and kept.mean > plain.mean + 0.2 and kept.worst > plain.worst + 0.2
    assert kept.keep < plain.keep
    assert [each.step for each in marks] == [3, 6, 12, 18, 24, 30] and marks[-1].seconds_left == 0
    assert kept.loras == pytest.approx(
        max(marks, key=lambda each: each.retention.mean).retention.loras, abs=1e-3
    )
    prompts = [LORAS[name][1] for name in FOUR]
    scores = [
        sum(cell.right for cell in studio.draw(prompts, each).values()) for each in (merge(four), distilled)
    ]
    assert scores[1] > scores[0] + 0.5
    assert {name: layer.fixed.rank for name, layer in distilled.layers.items()} == {
        name: min(sum(layer.aligned.ranks), *layer.template.matrix_shape)
        for name, layer in merge(four).layers.items()
    }


@pytest.mark.parametrize("start", ["calibrated", "linear"])
def test_same_seed_same_bits(recorded, host, four, start):
    """The seed decides the order of the samples; the rank is the one that was asked for."""
    results = [
        learning.distill(
            recorded, host, four, rank=4, steps=4, batch=16, learning_rate=0.03, seed=seed, start=start
        )
        for seed in (1, 1, 2)
    ]
    assert all(each.request.learned["best_step"]["denoiser"] > 0 for each in results)
    same = [
        all(torch.equal(results[0].delta(name), other.delta(name)) for name in results[0].layers)
        for other in results[1:]
    ]
    assert same == [True, False]
    assert {factors[1].shape[0] for name in results[0].layers if (factors := results[0].factors(name))} == {4}


def test_an_ordinary_merge(recorded, host, four, tmp_path):
    """It saves, loads, reports and tells how it was made; its recipe needs the model."""
    distilled = learning.distill(recorded, host, four, rank=6, steps=2, batch=8)
    assert distilled.report.counts()["merged"] == len(merge(four).layers)
    path = tmp_path / "four.safetensors"
    saved = merge_ops.save(distilled, path)
    assert saved.total_error < 1e-3
    back = merge([merge_ops.load(path)])
    for name in distilled.layers:
        assert torch.allclose(back.delta(name), distilled.delta(name), atol=2e-3)
    recipe = merge_ops.read_recipe(path)
    assert recipe.learned["recording"] == recorded.sha256 and recipe.learned["settings"]["steps"] == 2
    assert [source.name for source in recipe.sources] == list(FOUR)
    with pytest.raises(ParameterError, match=r"was distilled.*needs the base model"):
        recipe.run(four)


def test_cancel_keeps_nothing(recorded, host, four):
    """An exception in the callback passes through; ``unchanged`` holds that the base is as before."""

    def cancel(progress):
        if progress.step == 2:
            raise InterruptedError("cancelled")

    with pytest.raises(InterruptedError):
        learning.distill(recorded, host, four, steps=50, batch=8, progress=cancel)


def test_stop_and_keep(recorded, host, four):
    """The best so far, measured at the step where it was stopped."""
    marks = []
    distilled = learning.distill(
        recorded, host, four, steps=500, batch=16, progress=marks.append, stop=lambda: len(marks) >= 7
    )
    assert marks[-1].step == 8 and marks[-1].retention is not None
    best = max(each.retention.mean for each in marks if each.retention)
    assert learning.retention(recorded, host, distilled).mean == pytest.approx(best, abs=1e-4)
    assert best > learning.retention(recorded, host, merge(four)).mean


def test_never_worse_than_the_start(recorded, host, four):
    """What keeps most is kept: steps that are far too long do not spoil the merge."""
    distilled = learning.distill(recorded, host, four, steps=3, batch=8, learning_rate=50.0, start="linear")
    assert distilled.request.learned["best_step"] == {"denoiser": 0}
    kept, plain = (learning.retention(recorded, host, each) for each in (distilled, merge(four)))
    assert kept.mean == pytest.approx(plain.mean, abs=1e-3)


def test_a_rate_that_is_too_high(recorded, host, four):
    """Training goes back to what kept most, goes on at a third of the rate, and says so."""
    marks = []
    distilled = learning.distill(
        recorded, host, four, steps=40, batch=16, learning_rate=1.0, progress=marks.append
    )
    notes = marks[-1].notes
    assert len(notes) >= 2 and notes[0].startswith("step 4: less was kept than at step 0")
    assert "learning rate of 0.33" in notes[0] and "learning rate of 0.11" in notes[1]
    best = max((each for each in marks if each.retention), key=lambda each: each.retention.mean)
    start = learning.retention(recorded, host, learning.calibrate(recorded, host, four))
    assert learning.retention(recorded, host, distilled).mean == pytest.approx(best.retention.mean, abs=1e-3)
    assert best.retention.mean > start.mean + 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "calibratd"}, "did you mean 'calibrated'"),
        ({"steps": 0}, "steps must be a whole number of 1 or more"),
        ({"rank": 2.5}, "rank must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
    ],
)
def test_settings_are_checked(recorded, host, four, options, message):
    """Before anything runs."""
    with pytest.raises(ParameterError, match=message):
        learning.distill(recorded, host, four, **options)


def test_other_loras_are_refused(recorded, host, four):
    """A recording is of its LoRAs only."""
    with pytest.raises(IncompatibleLoraError, match="slant is not among the LoRAs"):
        learning.distill(recorded, host, four[:3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_base(studio, pair, dtype):
    """The base keeps its dtype, and float16 gradients that are small are not lost."""
    half = deepcopy(studio.unet).to(dtype)
    host = DiffusersHost(half)

    noise = torch.randn(8, 12, 12, 12, generator=torch.Generator().manual_seed(0)).to(dtype)

    def run(lora):
        digit, style = LORAS[lora.name][1]
        given = torch.full((8,), digit), torch.full((8,), STYLES.index(style))
        context = prompt(studio.tokens, *given).to(dtype)
        with torch.no_grad():
            for time in (100.0, 400.0, 700.0):
                half(noise, torch.full((8,), time), context)

    recording = learning.record(host, pair, run)
    assert {each.output.dtype for each in recording.samples} == {dtype}
    distilled = learning.distill(recording, host, pair, steps=15, batch=16, start="linear")
    kept, plain = (learning.retention(recording, host, each) for each in (distilled, merge(pair)))
    assert kept.mean > plain.mean + 0.05
    assert {weight.dtype for weight in half.parameters()} == {dtype}


def test_divergence_is_an_error(recorded, host, four):
    """Nothing that is not a number is kept."""
    with pytest.raises(MergeError, match=r"diverged at step \d+: the loss is (inf|nan)"):
        learning.distill(recorded, host, four, steps=60, batch=8, learning_rate=1e12, start="linear")


def test_answers_that_are_not_numbers(host, pair, draw):
    """A LoRA that breaks the model is named where it is recorded."""
    with pytest.raises(MergeError, match="denoiser answered with NaN or infinity"):
        learning.record(host, pair, lambda lora: draw([(6, "plain")]), weights=[1e25, 1.0])
