"""The detector of LoRAs that repeat each other: its figure, when it speaks, and what it leaves alone."""

import math
from dataclasses import replace

import pytest
import torch

import merge_ops
from merge_ops import Lora
from merge_ops.adapters import Full
from merge_ops.analysis import repetition
from merge_ops.analysis.repetition import advice_on_sum, repetition_of
from merge_ops.cli import main

SHAPES = {f"unet.down_blocks.{i}.attentions.0.proj_in": (40, 30 + i) for i in range(3)}


@pytest.fixture
def loras(make_lora):
    return [
        make_lora(n, shapes=SHAPES, rank=4, alpha=2, seed=i) for i, n in enumerate(("ink", "mia", "neon"))
    ]


def dense_ratio(merged):
    total = parts = 0.0
    for layer in merged.layers.values():
        deltas = [
            w * p.matrix().double() for p, w in zip(layer.aligned.parts, layer.aligned.weights, strict=True)
        ]
        total += float(sum(deltas).square().sum())
        parts += sum(float(delta.square().sum()) for delta in deltas)
    return math.sqrt(total / parts)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 2.0]])
def test_it_is_the_ratio_of_the_deltas(loras, weights):
    """Over all layers and with the strengths by block."""
    merged = merge_ops.merge([*loras[:2], loras[0]], weights, blocks=[None, "down:0.5", None])
    assert repetition_of(merged).ratio == pytest.approx(dense_ratio(merged), rel=1e-5)


def test_one_lora_twice_and_things_that_are_different(loras):
    twice = merge_ops.merge([loras[0], loras[0]])
    assert repetition_of(twice).ratio == pytest.approx(math.sqrt(2), rel=1e-5)
    assert repetition_of(twice).strength == pytest.approx(math.sqrt(0.5), rel=1e-5)
    (sentence,) = advice_on_sum(twice)
    assert "1.41 times as large" in sentence and "0.71 times the strengths" in sentence
    assert repetition_of(merge_ops.merge(loras)).ratio == pytest.approx(1, abs=repetition.LIMIT - 1)
    assert not advice_on_sum(merge_ops.merge(loras[:2], [1.0, 0.8]))


def test_the_strength_matches(loras):
    """At that scale the sum is as large as LoRAs of these sizes are that have nothing in common."""
    merged = merge_ops.merge([loras[0], loras[0]])
    matched = merge_ops.merge([loras[0], loras[0]], scale=repetition_of(merged).strength)
    name = next(iter(SHAPES))
    size = float(loras[0].layers[name].delta().norm())
    assert float(matched.delta(name).norm()) == pytest.approx(math.sqrt(2) * size, rel=1e-5)


def test_methods_that_do_not_add_are_left_alone(loras):
    for method in ("even", "mean", "ties"):
        assert not advice_on_sum(merge_ops.merge([loras[0], loras[0]], None, method))
    assert advice_on_sum(merge_ops.merge([loras[0], loras[0]], combination_type="cat"))


def test_what_would_have_to_be_formed_is_not_measured(loras):
    """Nor a single LoRA, nor LoRAs of zeros."""
    full = Lora("full", {name: Full(torch.randn(rows, columns)) for name, (rows, columns) in SHAPES.items()})
    assert repetition_of(merge_ops.merge([full, loras[0]])) is None
    assert repetition_of(merge_ops.merge(loras[:1])) is None
    zero = Lora("zero", {k: replace(v, up=v.up * 0) for k, v in loras[0].layers.items()})
    assert repetition_of(merge_ops.merge([zero, zero])).ratio == 1


def test_of_very_many_weights_a_share_is_measured(loras, monkeypatch):
    asked = []
    stacked = repetition.stacked_factors
    monkeypatch.setattr(
        repetition, "stacked_factors", lambda la, device: asked.append(la) or stacked(la, device)
    )
    monkeypatch.setattr(repetition, "_WORK", 1e3)
    found = repetition_of(merge_ops.merge([loras[0], loras[0]]))
    assert found.ratio == pytest.approx(math.sqrt(2), rel=1e-5)
    assert 1 <= len(asked) < len(SHAPES)


def test_the_command_line_says_so(loras, tmp_path, capsys):
    """``merge`` after the fact, ``inspect`` before."""
    paths = []
    for name in ("ink", "again"):
        paths.append(str(tmp_path / f"{name}.safetensors"))
        merge_ops.save(merge_ops.merge(loras[:1]), paths[-1])
    main(["merge", *paths, "-o", str(tmp_path / "both.safetensors")])
    assert "the LoRAs repeat each other: their sum is 1.41 times" in capsys.readouterr().out
    main(["inspect", *paths])
    assert "ink and again repeat each other: their sum is 1.41 times" in capsys.readouterr().out
    main(["merge", *paths, "--method", "mean", "-o", str(tmp_path / "mean.safetensors")])
    assert "repeat each other" not in capsys.readouterr().out
