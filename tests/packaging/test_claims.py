"""Figures and commands of the README and of docs: the figures agree, and the commands run as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import merge_ops
from merge_ops.cli import main
from merge_ops.demo.text.plan import ROWS
from tests.architectures.configs import COMFYUI

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
# commands that other tests run: fuse in tests/text, extract in tests/cli, the demo in tests/test_demo.py,
# YAML in tests/recipes, and those that need a model in tests/learning
ELSEWHERE = tuple(
    f"lora-alloy {rest}"
    for rest in ("fuse", "extract", "demo", "measure", "distill", "recipe run mergekit.yaml")
)


def commands(text):
    """Return the commands of a page that are run here."""
    found = re.findall(r"^lora-alloy .+$", text, re.MULTILINE)
    return [line for line in found if not line.startswith(ELSEWHERE) and "COMMAND" not in line]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder in which the commands run, with LoRAs by the names that the pages use."""
    for seed, name in enumerate(("ink", "mia")):
        generator = torch.Generator().manual_seed(seed)
        layers = {
            f"unet.down_blocks.0.attentions.0.transformer_blocks.0.{layer}": merge_ops.LowRank(
                torch.randn(64, 8, generator=generator), torch.randn(8, 64, generator=generator), 0.1
            )
            for layer in ("attn1.to_q", "attn1.to_k")
        }
        alone = merge_ops.merge([merge_ops.Lora(name, layers)])
        merge_ops.save(alone, tmp_path / f"{name}.safetensors")
    merge_ops.save(alone, tmp_path / "mia_adapter", format="peft")
    (tmp_path / "epochs").mkdir()
    for name in ("ink-000001", "ink"):
        shutil.copy(tmp_path / "ink.safetensors", tmp_path / "epochs" / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [README, PAGE, RECIPES], ids=["README", "command-line", "recipes"])
def test_commands_run_as_they_stand(page, folder, capsys):
    """In the order of the page; the sources of a recipe lie in the folders that it names."""
    if page is RECIPES:
        assert main(["merge", "ink.safetensors", "mia.safetensors", "-o", "both.safetensors"]) == 0
        (folder / "more_loras").mkdir()
    (folder / "loras").mkdir()
    for name in ("ink.safetensors", "mia.safetensors"):
        shutil.copy(folder / name, folder / "loras")
    shutil.copytree(folder / "mia_adapter", folder / "loras" / "mia_adapter")
    assert len(commands(page)) >= 2
    for line in commands(page):
        code = main(shlex.split(line)[1:])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"


def test_code_of_the_page_on_recipes(folder):
    """With the file that its commands made."""
    (folder / "loras").mkdir()
    for name in ("ink.safetensors", "mia.safetensors"):
        shutil.copy(folder / name, folder / "loras")
    assert main(["merge", "ink.safetensors", "mia.safetensors", "-o", "both.safetensors"]) == 0
    names = {"merge_ops": merge_ops}
    exec(re.search(r"```python\n(.*?)```", RECIPES, re.DOTALL)[1], names)  # noqa: S102
    assert len(names["merged"].layers) == 2


def test_options_of_the_commands(capsys):
    """Each option of the table is one of the commands that its row names, and of no others."""
    every = (
        "merge", "extract", "distill", "measure", "inspect", "resize", "recipe show", "recipe run", "fuse",
        "methods", "demo",
    )  # fmt: skip
    offered = {}
    for command in every:
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        offered[command] = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    rows = re.findall(r"^\| `(--[a-z-]+).*?` \| .*? \| (.*?) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 6
    for option, named in rows:
        told = set(re.findall(r"`([^`]+)`", named))
        told = set(every) - told if named.startswith("all but") else told
        assert told == {command for command in every if option in offered[command]}, option


def test_figures_of_the_readme():
    """Its speed is that of the table in docs/speed.md; it counts the models that were checked."""
    table = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    ratios = [float(row[column]) for row in rows[1:] for column in (4, 7)]
    low, high = re.search(r"\*\*Fast\.\*\* ([\d.]+) to ([\d.]+) times", README).groups()
    assert (float(low), float(high)) == (min(ratios), max(ratios))
    files = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert f"[{len(COMFYUI)} model architectures]" in README and f"lists {len(COMFYUI)} models" in files


def test_the_page_of_the_text_demo():
    """Its rows are those of the demo, and the methods that keep the most are those that docs name."""
    page = (ROOT / "docs" / "text-demo.md").read_text(encoding="utf-8")
    table = page.partition("## What it shows")[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ("|" + table).splitlines()[2:]]
    merges = [row for row in rows if row[-1]]
    assert [row[:2] for row in merges] == [[row.title, row.clause] for row in ROWS]
    share = {row.title: int(cells[-1]) for row, cells in zip(ROWS, merges, strict=True)}
    data_free = {row.title: share[row.title] for row in ROWS if not row.learned}
    assert max(data_free, key=data_free.__getitem__) == "ties"
    assert max(share, key=share.__getitem__) == "distilled"
    said, methods = " ".join(page.split()), " ".join(METHODS.split())
    assert f"`ties` keeps the most here ({share['ties']} %)" in said
    assert f"`distilled` keeps the most here ({share['distilled']} %), also at rank 8" in said
    assert share["distilled, rank 8"] == share["distilled"]
    assert (
        f"`calibrated` solves for every layer once, from the same texts, and keeps {share['calibrated']} %"
        in said
    )
    assert (
        "`ties` keeps the most of the methods that see only the files, and `distilled` more than all"
        in methods
    )
