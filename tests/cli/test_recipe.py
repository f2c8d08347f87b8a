"""``lora-alloy recipe`` as a user runs it."""

import json
import subprocess
import sys

import pytest
import torch

import merge_ops
from merge_ops.cli import main

SHAPES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (64, 48),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2": (32, 96),
}
LORAX = {"ids": ["ink", "mia"], "weights": [0.5, 1], "merge_strategy": "ties", "density": 0.5}
YAML = """
merge_method: task_arithmetic
base_model: some/base
models:
- {model: ink, parameters: {weight: 0.5}}
- {model: mia, parameters: {weight: 0.25}}
"""


@pytest.fixture
def folder(tmp_path, make_lora, monkeypatch):
    """The current folder, with two LoRAs in ``loras`` and a merge of them beside it."""
    (tmp_path / "loras").mkdir()
    for seed, name in enumerate(("ink", "mia")):
        lora = make_lora(name, shapes=SHAPES, rank=4, seed=seed)
        merge_ops.save(merge_ops.merge([lora]), tmp_path / "loras" / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    args = ["loras/ink.safetensors:0.7", "loras/mia.safetensors:-0.3", "--method", "ties", "--density", "0.4"]
    assert main(["merge", *args, "--rank", "6", "-o", "both.safetensors"]) == 0
    (tmp_path / "lorax.json").write_text(json.dumps(LORAX))
    (tmp_path / "kit.yaml").write_text(YAML)
    return tmp_path


def run_here(capsys, *args):
    """The exit code, standard output and standard error."""
    capsys.readouterr()
    try:
        code = main(["recipe", *args])
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_show(folder, capsys):
    """Sources with weights and hashes, and the settings; as JSON, what is in the file."""
    code, out, _ = run_here(capsys, "show", "both.safetensors")
    ink = merge_ops.load("loras/ink.safetensors")
    assert code == 0 and f"{ink.sha256}" in out
    assert all(line in out for line in ("method: ties", "rank: 6", "density: 0.4", "seed: 0", "-0.3"))
    code, out, _ = run_here(capsys, "show", "both.safetensors", "--json")
    written = merge_ops.load("both.safetensors").metadata["lora_alloy"]
    assert code == 0 and json.loads(out) == json.loads(written)


def test_run_gives_the_same_file(folder):
    """Byte for byte but for its name, through the process that a user starts."""
    command = [sys.executable, "-m", "merge_ops", "recipe", "run", "both.safetensors", "--folder", "loras"]
    (folder / "again").mkdir()
    done = subprocess.run(
        [*command, "-o", "again/both.safetensors"],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "read back and compared" in done.stdout
    assert (folder / "again" / "both.safetensors").read_bytes() == (folder / "both.safetensors").read_bytes()


def test_run_from_json(folder, capsys):
    """What ``show --json`` prints is a recipe; with it beside the sources no folder is needed."""
    _, out, _ = run_here(capsys, "show", "both.safetensors", "--json")
    (folder / "loras" / "mine.json").write_text(out)
    code, _, error = run_here(capsys, "run", "loras/mine.json", "-o", "again.safetensors")
    assert code == 0, error
    a, b = (merge_ops.load(folder / f"{name}.safetensors") for name in ("both", "again"))
    assert all(torch.equal(a.layers[name].delta(), b.layers[name].delta()) for name in SHAPES)


def test_run_takes_the_options_of_merge(folder, capsys):
    """Rank, format, dtype, JSON and dry run; the new recipe has the new rank."""
    options = ("--folder", "loras", "--rank", "2", "--format", "peft", "--dtype", "float32", "--json")
    code, out, _ = run_here(capsys, "run", "both.safetensors", *options, "-o", "adapter")
    assert code == 0 and json.loads(out)["saved"]["format"] == "peft"
    assert {layer.rank for layer in merge_ops.load("adapter").layers.values()} == {2}
    assert merge_ops.read_recipe("adapter").rank == 2
    before = sorted(folder.iterdir())
    code, out, _ = run_here(capsys, "run", "both.safetensors", "--folder", "loras", "--dry-run")
    assert code == 0 and "nothing was written" in out
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("file", "says"), [("lorax.json", "0.5 acts as 0.25"), ("kit.yaml", "base_model")])
def test_run_recipes_of_other_programs(folder, capsys, file, says):
    """What an import leaves out is on standard error, and what is found by name is in the report."""
    code, out, error = run_here(capsys, "run", file, "--folder", "loras", "-o", "x.safetensors", "--json")
    assert code == 0 and says in error
    assert any("no SHA-256" in warning for warning in json.loads(out)["merge"]["warnings"])
    loras = [merge_ops.load(folder / "loras" / f"{name}.safetensors") for name in ("ink", "mia")]
    wanted = (
        merge_ops.merge(loras, [0.5, 1.0], "ties", space="factors", density=0.5)
        if file == "lorax.json"
        else merge_ops.merge(loras, [0.5, 0.25])
    )
    found = merge_ops.load("x.safetensors")
    assert all(torch.allclose(found.layers[n].delta(), wanted.delta(n), atol=2e-3) for n in wanted.layers)
    recipe = merge_ops.read_recipe("x.safetensors")  # now it knows what the sources are
    assert [source.sha256 for source in recipe.sources] == [lora.sha256 for lora in loras]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["show", "gone.safetensors"], 1, "gone.safetensors"),
        (["show", "loras"], 1, "loras is a folder"),
        (["run", "both.safetensors", "--folder", "loras"], 2, "-o FILE"),
        (["run", "both.safetensors", "--folder", "gone", "--dry-run"], 1, "no folder 'gone'"),
        (["run", "both.safetensors", "--folder", "empty", "--dry-run"], 1, "'ink'"),
        (["run", "both.safetensors", "--folder", "loras", "--rank", "0", "--dry-run"], 1, "1 or more"),
        (["run", "both.safetensors", "--folder", "loras", "-o", "both.safetensors"], 1, "already exists"),
        (["run", "kit.txt", "--dry-run"], 1, "kit.txt"),
        (["run", "both.safetensors", "--foldre", "loras", "--dry-run"], 2, "did you mean '--folder'"),
        (["replay", "both.safetensors"], 2, "replay"),
        ([], 2, "show|run"),
    ],
)
def test_refusals(folder, capsys, args, code, says):
    """One sentence and an exit code; nothing is written."""
    (folder / "empty").mkdir()
    (folder / "kit.txt").write_text(YAML)
    before = sorted(folder.rglob("*"))
    exit_code, out, error = run_here(capsys, *args)
    assert (exit_code, out) == (code, "")
    assert says in error and "Traceback" not in error
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("part", ["show", "run"])
def test_help(capsys, part):
    """The examples are in the help of the command, the options in that of its parts."""
    code, out, _ = run_here(capsys, "--help")
    assert code == 0 and f"lora-alloy recipe {part} " in out
    code, out, _ = run_here(capsys, part, "--help")
    assert code == 0 and "FILE" in out
