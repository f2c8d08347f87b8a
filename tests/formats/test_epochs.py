"""Epochs of a training by a pattern or a folder: order, weights by age, and what is refused."""

import json
import shutil

import pytest
import torch

import merge_ops
from merge_ops import ParameterError, load_all, recency_weights
from merge_ops.cli import main
from merge_ops.formats.epochs import find_epochs, in_epoch_order

LAYER = {"unet.mid_block.attentions.0.proj_in": (12, 8)}


@pytest.fixture
def epochs(tmp_path, make_lora, monkeypatch):
    """Four epochs of one training and what lies beside them."""
    folder = tmp_path / "runs"
    folder.mkdir()
    loras = {}
    for seed, name in enumerate(("run-2", "run-000004", "run-10", "run")):
        lora = make_lora(name, shapes=LAYER, seed=seed)
        merge_ops.save(merge_ops.merge([lora]), folder / f"{name}.safetensors", dtype=torch.float32)
        loras[name] = merge_ops.load(folder / f"{name}.safetensors")
    (folder / "run-2.png").write_bytes(b"")
    (folder / "run-10.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return loras


def deltas(lora):
    (name,) = LAYER
    return lora.layers[name].delta()


@pytest.mark.parametrize(
    "path", ["runs/run*", "runs/run*.safetensors", "runs", "runs/", "r?ns/run*", "*/run*"]
)
def test_all_of_a_training(epochs, path):
    """Oldest first, by number; the last one has none. Pictures and notes are no LoRAs."""
    assert [lora.name for lora in load_all(path)] == list(epochs)
    assert [lora.name for lora in load_all("runs/run-*")] == list(epochs)[:3]


@pytest.mark.parametrize(
    "names",
    [
        ["ink-000002", "ink-000010", "ink"],
        ["ink_e1", "ink_e2", "ink_e10", "ink"],
        ["ink-step00000500", "ink-step00001000", "ink"],
        ["ink_000000250", "ink_000002000", "ink"],
        ["checkpoint-500", "checkpoint-1000"],
        ["sd15-000001", "sd15-000002", "sd15"],
        ["a2-1", "a2-3", "a10-1", "a10"],
        ["墨-1", "墨-2", "墨-11"],
        ["v1.5 epoch 9", "v1.5 epoch 10"],
    ],
    ids=lambda names: names[0],
)
def test_order(names, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in names]
    for given in (paths[::-1], sorted(paths), paths[1:] + paths[:1]):
        assert in_epoch_order(given) == paths


def test_what_is_one_lora(epochs, tmp_path):
    """A file that exists is no pattern, brackets have no meaning, and a PEFT folder is one LoRA."""
    runs = tmp_path / "runs"
    for name in ("star*", "[ink]-1", "[ink]-2"):
        shutil.copy(runs / "run.safetensors", tmp_path / f"{name}.safetensors")
    assert find_epochs("star*.safetensors") == [find_epochs("star*")[0]]
    assert [path.name for path in find_epochs("[ink]-*")] == ["[ink]-1.safetensors", "[ink]-2.safetensors"]
    with pytest.raises(ParameterError):
        find_epochs("[i]*")
    adapter = tmp_path / "adapter"
    merge_ops.save(merge_ops.merge([epochs["run"]]), adapter, format="peft")
    shutil.copy(runs / "run.safetensors", adapter / "more.safetensors")
    assert find_epochs(adapter) == [adapter]


def test_folders_of_a_training(epochs, tmp_path):
    """Numbered PEFT folders are epochs; other adapters of one folder are a choice, as before."""
    for number in (500, 1000, 1500):
        merge_ops.save(merge_ops.merge([epochs["run"]]), tmp_path / f"out-{number}", format="peft")
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / f"out-{number}").rename(tmp_path / "out" / f"checkpoint-{number}")
    names = ["checkpoint-500", "checkpoint-1000", "checkpoint-1500"]
    assert [path.name for path in find_epochs("out")] == names
    assert [path.name for path in find_epochs("out/checkpoint-1*")] == names[1:]
    (tmp_path / "out" / "checkpoint-500").rename(tmp_path / "out" / "style")
    with pytest.raises(merge_ops.LoraFormatError, match="give the folder of one"):
        load_all("out")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("runs/rum-*", r"no LoRA matches 'runs/rum-\*' \(did you mean 'run"), ("gone/*", "no LoRA matches"),
     ("runs/*.json", "no LoRA matches")],
)  # fmt: skip
def test_nothing_matches(epochs, pattern, says, capsys):
    with pytest.raises(ParameterError, match=says):
        load_all(pattern)
    assert main(["merge", pattern, "-o", "x.safetensors"]) == 1
    assert "no LoRA matches" in capsys.readouterr().err


def test_weights_by_age():
    """Against the formula, and the sum that mean divides by; 1 counts all alike."""
    assert recency_weights(3, 0.5) == pytest.approx([3 * 0.25 / 1.75, 3 * 0.5 / 1.75, 3 / 1.75])
    assert recency_weights(4, 1) == [1.0] * 4 and recency_weights(1, 0.3) == [1.0]
    assert sum(recency_weights(50, 0.9)) == pytest.approx(50)
    for wrong in (0, -0.5, 1.5, float("nan"), True):
        with pytest.raises(ParameterError, match="recency"):
            recency_weights(3, wrong)


def test_the_mean_of_a_training(epochs, capsys):
    """On the command line: each at its weight, by age if asked, next to other LoRAs; its recipe names all."""
    shutil.copy("runs/run.safetensors", "other.safetensors")
    how = ("-o", "x.safetensors", "--dtype", "float32", "--overwrite")
    assert main(["merge", "runs/run*:0.8", "--method", "mean", *how]) == 0
    mean = torch.stack([deltas(lora) for lora in epochs.values()]).mean(0)
    assert torch.allclose(deltas(merge_ops.load("x.safetensors")), 0.8 * mean, atol=1e-6)
    assert [source.name for source in merge_ops.read_recipe("x.safetensors").sources] == list(epochs)
    said = capsys.readouterr().out
    assert all(f"0.8 x {name}" in said for name in epochs)

    assert main(["merge", "runs", "--method", "mean", "--recency", "0.5", *how]) == 0
    shares = torch.tensor([0.125, 0.25, 0.5, 1.0]) / 1.875
    average = sum(share * deltas(lora) for share, lora in zip(shares, epochs.values(), strict=True))
    assert torch.allclose(deltas(merge_ops.load("x.safetensors")), average, atol=1e-6)

    given = [f"runs/{name}.safetensors" for name in ("run", "run-10", "run-000004", "run-2")]
    assert main(["merge", *given, "--method", "mean", "--recency", "0.5", *how]) == 0
    assert torch.allclose(deltas(merge_ops.load("x.safetensors")), average, atol=1e-6)

    assert main(["merge", "runs/run*:0.25", "other.safetensors:0.5", "--recency", "0.5", *how]) == 0
    both = average + 0.5 * deltas(epochs["run"])
    assert torch.allclose(deltas(merge_ops.load("x.safetensors")), both, atol=1e-6)
    assert main(["merge", "runs", "--recency", "2", *how]) == 1


def test_other_commands_take_patterns(epochs, capsys):
    """Inspect as well, and options that name LoRAs by their places."""
    capsys.readouterr()
    assert main(["inspect", "runs/run-*", "--json"]) == 0
    assert [fact["name"] for fact in json.loads(capsys.readouterr().out)["loras"]] == list(epochs)[:3]
    assert main(["merge", "runs/run-*", "--blocks", "2=mid:0", "--dry-run"]) == 0
    assert "run-000004: blocks mid:0: 1 left out" in capsys.readouterr().out
