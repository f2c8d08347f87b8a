"""``lora-alloy extract`` as a user runs it."""

import json

import pytest
import torch
from safetensors.torch import save_file

import merge_ops
from tests.cli.test_commands import run
from tests.extracting.weights import SD1, random_weights, tuned_from


@pytest.fixture
def models(tmp_path):
    """A folder with a base, and a model tuned from it with a change of rank 4."""
    base = random_weights(SD1)
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned_from(base), tmp_path / "tuned.safetensors")
    return tmp_path


def test_extract_writes_a_lora_and_says_what_it_holds(models):
    done = run(
        "extract", "tuned.safetensors", "base.safetensors", "--rank", "8", "-o", "x.safetensors", cwd=models
    )
    assert done.returncode == 0, done.stderr
    assert "extracted tuned over base: 9 layers, rank 4" in done.stdout
    assert "keeps all of the difference, up to rounding" in done.stdout
    assert len(merge_ops.load(models / "x.safetensors").layers) == 9


def test_energy_gives_ranks_by_layer(models):
    done = run(
        "extract", "tuned.safetensors", "base.safetensors", "--energy", "0.6", "--no-vectors", "--format",
        "diffusers", "-o", "x.safetensors", "--json", cwd=models,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert {layer["rank"] for layer in report["extracted"]["layers"]} <= {1, 2, 3}
    assert 0.6 <= report["extracted"]["held"] <= report["saved"]["kept"]["energy"] + 1e-3 < 0.95
    assert report["saved"]["format"] == "diffusers"


def test_a_dry_run_lists_the_layers_and_writes_nothing(models):
    done = run("extract", "tuned.safetensors", "base.safetensors", "--rank", "1", "--dry-run", cwd=models)
    assert done.returncode == 0 and "warning: rank 1 keeps" in done.stdout
    assert "share of the difference" in done.stdout and "nothing was written" in done.stdout
    assert "what it loses is mostly in unet." in done.stdout
    assert len(list(models.iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ([], 2, "give the output with -o FILE"),
        (["-o", "base.safetensors"], 1, "already exists"),
        (["-o", "folder"], 1, "must end in .safetensors"),
        (["-o", "x.safetensors", "--energy", "95"], 1, "energy is a share, above 0 and at most 1"),
        (["-o", "x.safetensors", "--format", "diffusers"], 2, "add --no-vectors"),
        (["-o", "x.safetensors", "--no-vectors", "--strict"], 1, "--strict does not allow this"),
        (["-o", "x.safetensors", "--rnak", "3"], 2, "did you mean '--rank'"),
    ],
)
def test_refused(models, given, code, says):
    done = run("extract", "tuned.safetensors", "base.safetensors", *given, cwd=models)
    assert done.returncode == code and says in done.stderr, done.stderr
    assert sorted(path.name for path in models.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def test_the_recipe_of_it_is_shown(models):
    run("extract", "tuned.safetensors", "base.safetensors", "-o", "x.safetensors", cwd=models)
    done = run("recipe", "show", "x.safetensors", cwd=models)
    assert done.returncode == 0 and "base" in done.stdout and "extracted" in done.stdout
    again = run("recipe", "run", "x.safetensors", "--folder", ".", "-o", "y.safetensors", cwd=models)
    assert again.returncode == 1 and not (models / "y.safetensors").exists()


def test_the_device_changes_nothing_and_tensors_stay_as_they_are(models):
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    for device in ("cpu", "cpu:0"):
        out = f"{device.replace(':', '')}.safetensors"
        done = run(
            "extract", "tuned.safetensors", "base.safetensors", "-o", out, "--device", device, "--dtype",
            "float32", cwd=models,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    a, b = (merge_ops.load(models / name) for name in ("cpu.safetensors", "cpu0.safetensors"))
    assert all(torch.equal(layer.up, b.layers[name].up) for name, layer in a.layers.items())
    assert all((models / name).read_bytes() == content for name, content in before.items())
