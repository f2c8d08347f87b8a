"""The detector of LoRAs that drown each other: its figure, when it speaks, what it rests on."""

import json

import pytest
import torch

import merge_ops
from benchmarks.quality.plan import SETS, file_of, sources
from merge_ops.analysis import interference
from merge_ops.analysis.interference import LIMIT, interference_of
from merge_ops.analysis.repetition import advice_on_sum
from merge_ops.analysis.study import study
from tests.conftest import ROOT

SHAPES = {f"unet.down_blocks.{i}.attentions.0.proj_in": (40, 30 + i) for i in range(3)}
FIGURES = ROOT / "benchmarks" / "quality" / "figures.json"
DIFFERENT = [s for s in SETS if not s.twins]


def merged_set(lora_set, training="B"):
    return merge_ops.merge([merge_ops.load(file_of(*source)) for source in sources(lora_set, training)])


def interference_in(merged):
    layers = [layer.aligned for layer in merged.layers.values()]
    return interference_of(layers, [lora.name for lora in merged.loras])


def dense_shares(merged):
    """From the deltas as whole matrices."""
    count = len(merged.loras)
    sums = torch.zeros(2, count, dtype=torch.float64)
    for layer in merged.layers.values():
        aligned = layer.aligned
        deltas = [w * p.matrix().double() for p, w in zip(aligned.parts, aligned.weights, strict=True)]
        for place, delta in zip(aligned.indices, deltas, strict=True):
            others = sum(deltas) - delta
            energy = delta.square().sum()
            ratio = (others @ delta.T).square().sum() / (delta @ delta.T).square().sum()
            sums[:, place] += torch.stack([energy * ratio, energy])
    return (sums[0] / sums[1]).sqrt().tolist()


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 2.0]])
def test_it_is_that_of_the_deltas(make_lora, weights):
    """Over all layers, with the strengths, also where a LoRA is alone in a layer."""
    shapes = [SHAPES, dict(list(SHAPES.items())[:2]), SHAPES]
    loras = [make_lora(f"lora{i}", shapes=s, rank=4 + i, alpha=2, seed=i) for i, s in enumerate(shapes)]
    merged = merge_ops.merge(loras, weights)
    assert interference_in(merged).shares == pytest.approx(dense_shares(merged), rel=1e-4)


def test_a_stronger_lora_drowns_a_weak_one(make_lora):
    """The weak one is named, and its share grows with the strength of the other; alone nothing is said."""
    loras = [make_lora(name, shapes=SHAPES, rank=4, seed=i) for i, name in enumerate(("ink", "mia"))]
    for strength in (1.0, 8.0):
        found = interference_in(merge_ops.merge(loras, [strength, 1.0]))
        assert found.shares[1] == pytest.approx(strength * interference_in(merge_ops.merge(loras)).shares[1])
    assert found.is_notable and f"where mia acts, the other LoRA does {100 * found.shares[1]:.0f} %" in (
        found.sentence
    )
    assert interference_in(merge_ops.merge(loras[:1])) is None
    assert not advice_on_sum(merge_ops.merge(loras, [8.0, 1.0], "even"))


def test_many_layers_are_measured_in_part(make_lora, monkeypatch):
    """No more than is allowed, and near to what all of them say."""
    shapes = {f"unet.down_blocks.{i}.attentions.0.proj_in": (40, 30) for i in range(300)}
    loras = [make_lora(f"lora{i}", shapes=shapes, rank=4, seed=i) for i in range(3)]
    merged = merge_ops.merge(loras)
    asked, stacked = [], interference.stacked_factors
    monkeypatch.setattr(
        interference, "stacked_factors", lambda la, device: asked.append(la) or stacked(la, device)
    )
    assert interference_in(merged).mean == pytest.approx(
        (sum(share**2 for share in dense_shares(merged)) / 3) ** 0.5, rel=0.15
    )
    assert 15 < len(asked) <= 25


@pytest.mark.parametrize("training", ["B", "C"])
@pytest.mark.parametrize("lora_set", DIFFERENT, ids=lambda s: s.title)
def test_the_limit_is_where_sums_begin_to_lose_much(training, lora_set):
    """Of the sets of the benchmark: those above it are better distilled."""
    merged = merged_set(lora_set, training)
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["drawings"]["rows"]
    kept, distilled = (
        rows[title]["sets"][f"{training} {lora_set.title}"]["own"] for title in ("linear", "distilled")
    )
    if interference_in(merged).mean > LIMIT:
        assert kept < 0.9 < distilled and kept < distilled
        assert advice_on_sum(merged)[0].startswith("the LoRAs get in each other's way: where ")
    else:
        assert kept > 0.66 and not advice_on_sum(merged)


def test_inspect_says_it_too():
    """Six LoRAs of the benchmark, of which a sum keeps two fifths: nothing says that linear is fine."""
    six = next(s for s in SETS if len(s.names) == 6)
    found = study([merge_ops.load(file_of(*source)) for source in sources(six, "B")])
    assert found.pair_advice[0] == found.interference.sentence
    assert not any("linear is fine" in sentence for sentence in found.advice)
    assert found.to_dict()["interference"].keys() == set(six.names)


def test_groups_that_are_merged_apart(make_lora):
    """As for two models: no pair of both is compared, and the group that interferes more counts."""
    a, b, c, d = (make_lora(name, shapes=SHAPES, seed=seed) for seed, name in enumerate("abcd"))
    found = study([a, b, c, d], [[0, 1], [1, 2, 3]])
    assert [(one.first, one.second) for one in found.relations] == [
        ("a", "b"),
        ("b", "c"),
        ("b", "d"),
        ("c", "d"),
    ]
    of_groups = [study(group).interference for group in ([a, b], [b, c, d])]
    assert found.interference == max(of_groups, key=lambda one: one.mean)
    apart = study([a, b], [[0], [1]])
    assert not apart.relations and apart.interference is None and apart.view() == "spectrum"
    assert study([a, b]).relations == study([a, b], [[0, 1]]).relations


def test_twins_are_told_that_they_repeat_each_other():
    """One sentence, not two."""
    twins = next(s for s in SETS if s.twins)
    (said,) = advice_on_sum(merged_set(twins))
    assert "repeat each other" in said
