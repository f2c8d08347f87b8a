"""The command line as a user runs it: what it prints, writes and exits with, and never a traceback."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import merge_ops
from merge_ops.cli import main
from merge_ops.saving import save


def run_process(*args, cwd):
    """Run ``python -m merge_ops`` and return the finished process."""
    command = [sys.executable, "-m", "merge_ops", *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert "Traceback" not in done.stderr
    return done


def run(*args, cwd):
    """Run ``main`` in a folder, without the seconds that a process takes to start; an exception fails."""
    out, error, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            code = main([*map(str, args)])
    except SystemExit as stop:
        code = stop.code
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(args, code, out.getvalue(), error.getvalue())


def run_here(capsys, *args):
    """Run ``main`` in this process: the exit code, standard output and standard error."""
    try:
        code = main(list(args))
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


@pytest.fixture
def folder(tmp_path):
    """Two LoRA files of different ranks for the same two layers of SD1.5, in different spellings."""
    torch.manual_seed(0)
    for name, rank, form in (("ink", 4, "kohya"), ("mia", 8, "diffusers")):
        layers = {}
        for layer, out, columns in (("attn1.to_q", 64, 48), ("ff.net.2", 32, 96)):
            path = f"unet.down_blocks.0.attentions.0.transformer_blocks.0.{layer}"
            layers[path] = merge_ops.LowRank(
                torch.randn(out, rank) * 0.1, torch.randn(rank, columns) * 0.1, 0.5
            )
        merged = merge_ops.merge([merge_ops.Lora(name, layers)])
        save(merged, tmp_path / f"{name}.safetensors", format=form)
    return tmp_path


def test_merge_writes_what_the_library_merges(folder):
    """File, weights, method, parameter and rank of the command line reach the library."""
    args = ("--method", "ties", "--density", "0.4", "--majority-sign-method", "frequency", "--rank", "6")
    done = run_process(
        "merge", "ink.safetensors:0.7", "mia.safetensors:-0.3", *args, "-o", "out.safetensors", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "keeps" in done.stdout and "of this merge" in done.stdout
    loras = [merge_ops.load(folder / f"{name}.safetensors") for name in ("ink", "mia")]
    options = {"method": "ties", "density": 0.4, "majority_sign_method": "frequency", "rank": 6}
    expected = merge_ops.merge(loras, weights=[0.7, -0.3], **options)
    written = merge_ops.load(folder / "out.safetensors")
    for name in expected.layers:
        assert torch.allclose(written.layers[name].delta(), expected.delta(name), atol=2e-4)
    recipe = json.loads(written.metadata["lora_alloy"])
    assert recipe["params"] == {"density": 0.4, "majority_sign_method": "frequency"}
    assert [source["weight"] for source in recipe["sources"]] == [0.7, -0.3]


@pytest.mark.parametrize("name", merge_ops.COMBINATION_TYPES)
def test_every_combination_type_merges(folder, name, monkeypatch, capsys):
    """All eleven PEFT names, with PEFT's parameters, on LoRAs of equal rank where PEFT needs that."""
    args = ("--combination-type", name, "--density", "0.5", "--svd-rank", "3")
    monkeypatch.chdir(folder)
    code, _, says = run_here(
        capsys, "merge", "ink.safetensors", "ink.safetensors:0.5", *args, "-o", "out.safetensors"
    )
    assert code == 0, says
    ranks = {layer.rank for layer in merge_ops.load(folder / "out.safetensors").layers.values()}
    assert ranks == ({3} if "svd" in name else {8} if name == "cat" else {4})


def test_json_and_dry_run(folder):
    """``--json`` is one JSON document with the reports; ``--dry-run`` writes nothing."""
    done = run("merge", "ink.safetensors", "mia.safetensors", "--dry-run", cwd=folder)
    assert done.returncode == 0 and "4+8" in done.stdout and "nothing was written" in done.stdout
    done = run("merge", "ink.safetensors", "mia.safetensors", "--json", "-o", "x.safetensors", cwd=folder)
    report = json.loads(done.stdout)
    assert {layer["status"] for layer in report["merge"]["layers"]} == {"merged"}
    assert report["saved"]["largest_error"] < 1e-3
    assert sorted(p.name for p in folder.iterdir()) == ["ink.safetensors", "mia.safetensors", "x.safetensors"]


def test_inspect_shows_facts_and_relations(folder):
    """Format, layers, ranks and norm of each, and cosine and sign conflict per block of each pair."""
    done = run("inspect", "ink.safetensors", "mia.safetensors", cwd=folder)
    assert done.returncode == 0
    assert "kohya, 2 layers" in done.stdout and "unet.down_blocks.0" in done.stdout
    done = run("inspect", "ink.safetensors", "ink.safetensors", "--json", cwd=folder)
    facts = json.loads(done.stdout)
    assert facts["loras"][0]["ranks"] == {"4": 2}
    assert facts["comparison"][0]["cosine"] == pytest.approx(1.0)
    assert facts["comparison"][0]["sign_conflict"] == 0.0
    lora = merge_ops.load(folder / "ink.safetensors")
    norm = sum(float(layer.delta().norm()) ** 2 for layer in lora.layers.values()) ** 0.5
    assert facts["loras"][0]["norm"] == pytest.approx(norm, rel=1e-5)


def test_resize_is_the_best_approximation(folder):
    """A resized layer is the truncated SVD of the layer."""
    done = run(
        "resize", "mia.safetensors", "--rank", "3", "--dtype", "float32", "-o", "s.safetensors", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    before, after = merge_ops.load(folder / "mia.safetensors"), merge_ops.load(folder / "s.safetensors")
    for name, layer in before.layers.items():
        u, s, vh = torch.linalg.svd(layer.delta().double(), full_matrices=False)
        best = (u[:, :3] * s[:3]) @ vh[:3]
        assert after.layers[name].rank == 3
        assert torch.allclose(after.layers[name].delta().double(), best, atol=1e-6)


def test_methods_lists_the_registry(folder):
    """As text and as JSON."""
    done = run("methods", cwd=folder)
    assert done.returncode == 0
    assert all(name in done.stdout for name in (*merge_ops.METHODS, *merge_ops.COMBINATION_TYPES))
    listed = json.loads(run("methods", "--json", cwd=folder).stdout)
    assert [method["name"] for method in listed] == list(merge_ops.METHODS)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["merge", "ink.safetensors"], 2, "-o FILE"),
        (["resize", "ink.safetensors", "--rank", "2"], 2, "-o FILE"),
        (["fuse", "gone", "ink.safetensors"], 2, "-o FILE"),
        (["distill", "ink.safetensors", "--model", "gone"], 2, "-o FILE"),
        (["inspect", "ink.safetensors", "--view", "overview"], 2, "--view"),
        (["measure", "ink.safetensors", "--model", "gone", "--scales", "1,x"], 2, "--scales"),
        (["merge", "gone.safetensors", "-o", "x.safetensors"], 1, "gone.safetensors"),
        (["merge", "ink.safetensors", "-o", "mia.safetensors"], 1, "already exists"),
        (
            ["merge", "ink.safetensors", "--method", "ties", "--density", "1.5", "--dry-run"],
            1,
            "outside [0, 1]",
        ),
        (
            ["merge", "ink.safetensors", "mia.safetensors", "--space", "factors", "--dry-run"],
            1,
            "use --space delta",
        ),
        (["merge", "ink.safetensors", "--device", "gpu9", "--dry-run"], 1, "gpu9"),
        (["merge", "ink.safetensors", "--method", "tise"], 2, "did you mean 'ties'"),
        (["merge", "ink.safetensors", "--method", "ties", "--densty", "1"], 2, "did you mean '--density'"),
        (["merge", "ink.safetensors", "--density", "0.5"], 2, "not an option of linear; choose --method"),
        (["merge", "ink.safetensors", "--method", "even", "--epsilon=1"], 2, "--method della"),
        (["resize", "ink.safetensors", "--rank", "2", "--densty", "1"], 2, "has no option '--densty'"),
        (
            ["merge", "ink.safetensors", "--method", "ties", "--combination-type", "cat"],
            2,
            "not allowed with",
        ),
        (["resize", "ink.safetensors", "-o", "x.safetensors"], 2, "--rank"),
        (["alloy"], 2, "alloy"),
        ([], 2, "COMMAND"),
    ],
)
def test_refusals_are_one_sentence_with_an_exit_code(folder, args, code, says, monkeypatch, capsys):
    """1 for what is refused, 2 for wrong usage; nothing is written."""
    before = sorted(folder.iterdir())
    monkeypatch.chdir(folder)
    exit_code, out, error = run_here(capsys, *args)
    assert (exit_code, out) == (code, "")
    assert says in error
    assert sorted(folder.iterdir()) == before


def test_the_process_exits_with_the_code(folder):
    """What ``main`` returns is the exit code of the process, for a refusal and for wrong usage."""
    assert run_process("merge", "gone.safetensors", "--dry-run", cwd=folder).returncode == 1
    assert run_process("alloy", cwd=folder).returncode == 2
    assert run_process("methods", "--json", cwd=folder).returncode == 0


@pytest.mark.parametrize("command", ["merge", "inspect", "resize"])
def test_help_has_examples(command, capsys):
    """Each command explains itself."""
    code, out, _ = run_here(capsys, command, "--help")
    assert code == 0 and f"lora-alloy {command} " in out


def test_blocks_reach_the_library(folder):
    """By name, by place and for all the others; said in the summary, kept in the recipe."""
    own = ("--blocks", "ink=down:0.5 attn:0.8", "--blocks", "2=ff:0", "--blocks", "down:2")
    loras = ("ink.safetensors", "mia.safetensors", "mia.safetensors:0.5")
    done = run("merge", *loras[:2], *own, "-o", "x.safetensors", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "ink: blocks down:0.5 attn:0.8: 1 layers at 0.5, 1 layers at 0.4" in done.stdout
    assert "mia: blocks ff:0: 1 layers at 1, 1 left out" in done.stdout
    written = merge_ops.load(folder / "x.safetensors")
    recipe = merge_ops.read_recipe(folder / "x.safetensors")
    assert recipe.blocks == ["down:0.5 attn:0.8", "ff:0"]
    expected = merge_ops.merge([merge_ops.load(folder / name) for name in loras[:2]], blocks=recipe.blocks)
    for name in expected.layers:
        assert torch.allclose(written.layers[name].delta(), expected.delta(name), atol=2e-4)
    shown = run("recipe", "show", "x.safetensors", cwd=folder)
    assert "down:0.5 attn:0.8" in shown.stdout
    for wrong, says in (
        (("--blocks", "fox=down:1"), "names no LoRA"),
        (("--blocks", "dwon:1"), "did you mean 'down'"),
        (("--blocks", "ink=down:1", "--blocks", "1=up:1"), "given twice for ink"),
        (("--blocks", "down:1", "--blocks", "up:1"), "twice for all"),
        (("--blocks", "rest:0"), "nothing is merged"),
    ):
        done = run("merge", *loras[:2], *wrong, "--dry-run", cwd=folder)
        assert done.returncode == 1 and says in done.stderr, done.stderr
