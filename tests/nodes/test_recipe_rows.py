"""Recipes as rows and values of widgets, and the requests that files and recipes are found with."""

import base64
import hashlib
import json
import shutil

import pytest

import merge_ops
from tests.nodes.dropping import save_merge
from tests.nodes.pack import pack_module

recipe_rows = pack_module("nodes.values.recipe_rows")
Recipe = pack_module("merge_ops.recipes").Recipe
FIND, RECIPE = "/lora_alloy/find", "/lora_alloy/recipe"


def recipe(**how):
    """A recipe of two sources."""
    sources = [{"name": "a", "weight": 0.7, "text_weight": 0.2, "blocks": "mid:0.5"}, {"name": "b"}]
    return Recipe.parse({"recipe": 1, "sources": sources, **how})


def question(path, **more):
    """What the page asks about a file."""
    content = path.read_bytes()
    middle = len(content) // 2
    sample = base64.b64encode(content[middle : middle + 4096]).decode()
    return {"name": path.name, "size": len(content), "sample": sample, **more}


def test_rows():
    """Strengths, CLIP strengths and blocks; all of it is read back."""
    text, left_out = recipe_rows.rows_of(recipe(), ["sub/a.safetensors", "b.safetensors"])
    assert text == "<lora:sub/a.safetensors:0.7:0.2:blocks=mid:0.5>\n<lora:b.safetensors:1>"
    assert left_out == []


@pytest.mark.parametrize("name", ["a>b", "mia:0.5", "<lora", "x:blocks=y"])
def test_names_that_no_list_can_hold(name):
    """Such a source is left out with a sentence; a list with it would mean something else."""
    text, left_out = recipe_rows.rows_of(recipe(), ["a", name])
    assert text == "<lora:a:0.7:0.2:blocks=mid:0.5>"
    assert "b is left out" in left_out[0]


def test_widgets_of_a_method():
    """The parameters with their defaults, and the expert settings; 0 is no rank."""
    ties = recipe(method="ties", params={"density": 0.3}, rank=8, seed=5, scale=1.5)
    assert recipe_rows.widgets_of(ties) == {
        "method": "ties", "method.density": 0.3, "method.majority_sign_method": "total", "space": "delta",
        "rank": 8, "seed": 5, "strength": 1.5,
    }  # fmt: skip
    assert recipe_rows.list_lost(ties) == []
    assert recipe_rows.widgets_of(recipe())["rank"] == 0


def test_widgets_of_a_combination_type():
    """PEFT's names are the method peft; a rank that the result was cut to has no widget."""
    cut = recipe(combination_type="ties_svd", svd_rank=8, svd_clamp=0.99, params={"density": 0.4}, rank=4)
    assert recipe_rows.widgets_of(cut) == {
        "method": "peft", "method.combination_type": "ties_svd", "method.svd_rank": 8,
        "method.svd_clamp": 0.99, "method.density": 0.4, "method.majority_sign_method": "total",
        "space": "delta", "rank": 0, "seed": 0, "strength": 1.0,
    }  # fmt: skip
    assert "cut to rank 4" in recipe_rows.list_lost(cut)[0]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"seed": -1}, "seed -1"),
        ({"scale": 150}, "150"),
        ({"rank": 5000}, "above 4096"),
        ({"keep": "a"}, "those of a were kept"),
        ({"reader": "comfyui"}, "as comfyui reads them"),
        ({"learned": {"steps": 5}}, "distilled"),
    ],
)
def test_what_no_widget_holds_is_said(how, says):
    """With a value that the widget takes in its place."""
    (sentence,) = recipe_rows.list_lost(recipe(**how))
    assert says in sentence
    values = recipe_rows.widgets_of(recipe(**how))
    assert values["seed"] >= 0 and values["rank"] <= 4096 and values["strength"] <= 100


def test_a_file_is_found_by_its_content(server, tmp_path):
    """A hash is needed only where a file of that size with the same bytes in its middle is there."""
    loras = server.base / "models" / "loras"
    path = loras / "sd15_b.safetensors"
    status, first = server.post(FIND, question(path, keys=["lora_unet_x.lora_up.weight"]))
    assert (status, first) == (200, {"alike": 1, "folder": "models/loras", "problem": None})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert server.post(FIND, question(path, sha256=sha256))[1]["found"] == "sd15_b.safetensors"
    assert server.post(FIND, question(path, sha256="0" * 64))[1]["found"] is None
    assert server.post(FIND, question(path) | {"size": 5})[1]["alike"] == 0
    (loras / "copies").mkdir()
    shutil.copy(path, loras / "copies" / "mine.safetensors")
    try:
        asked = question(loras / "copies" / "mine.safetensors", sha256=sha256)
        assert server.post(FIND, asked)[1]["found"] == "copies/mine.safetensors", "the name decides"
    finally:
        shutil.rmtree(loras / "copies")


def test_a_checkpoint_is_named(server):
    """By the names of its tensors."""
    keys = [f"model.diffusion_model.input_blocks.{i}.weight" for i in range(9)]
    _, answer = server.post(FIND, {"name": "x", "size": 3, "sample": "", "keys": keys})
    assert "whole weights of a model" in answer["problem"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (FIND, [], "not a JSON object"),
        (FIND, {}, "size must be"),
        (FIND, {"size": -1}, "size must be"),
        (FIND, {"size": 1, "sample": "*"}, "base64"),
        (FIND, {"size": 1, "sample": "AAAA" * 2000}, "at most 4096 bytes"),
        (FIND, {"size": 1, "keys": "x"}, "keys must be"),
        (RECIPE, {}, "give the text of a recipe"),
        (RECIPE, {"name": "gone"}, "no LoRA file 'gone'"),
        (RECIPE, {"name": "../../../etc/passwd"}, "no LoRA file"),
        (RECIPE, {"name": "sd15_a"}, "has no recipe"),
        (RECIPE, {"text": "{"}, "not valid JSON"),
        (RECIPE, {"text": "[" * 90_000}, "more than 100 brackets"),
        (RECIPE, {"text": "x" * 200_000}, "too long for a recipe in YAML"),
        (RECIPE, {"text": '{"recipe": 1, "sources": []}'}, "at least one source"),
        (RECIPE, {"text": "{" + " " * 1_100_000}, "too long for a recipe"),
    ],
)
def test_bad_requests(server, path, body, says):
    """Each is a 400 with one sentence."""
    status, answer = server.post(path, body)
    assert status == 400 and says in answer["error"], answer


def test_a_saved_merge_as_rows(server, tmp_path):
    """By its name; a source that was renamed is missing until all files are read; a changed one is said."""
    loras = server.base / "models" / "loras"
    save_merge(loras, loras / "served mix.safetensors")
    try:
        status, answer = server.post(RECIPE, {"name": "served mix"})
        assert status == 200
        assert answer["rows"].splitlines() == [
            "<lora:sd15_a.safetensors:0.7>",
            "<lora:sd15_b.safetensors:-0.5>",
        ]
        assert (answer["missing"], answer["searchable"], answer["warnings"]) == ([], False, [])
        shutil.copy(loras / "sd15_a.safetensors", tmp_path / "gone.safetensors")
        gone = merge_ops.load(tmp_path / "gone.safetensors")
        text = merge_ops.Recipe.of(merge_ops.merge([gone])).to_json()
        answer = server.post(RECIPE, {"text": text})[1]
        assert (answer["rows"], answer["missing"], answer["searchable"]) == ("<lora:gone:1>", ["gone"], True)
        answer = server.post(RECIPE, {"text": text, "by_content": True})[1]
        assert (answer["rows"], answer["missing"]) == ("<lora:sd15_a.safetensors:1>", [])
        changed = json.loads(text)
        changed["sources"][0] |= {"name": "sd15_b"}
        answer = server.post(RECIPE, {"text": json.dumps(changed)})[1]
        assert "is not the file that was merged" in answer["warnings"][0]
    finally:
        (loras / "served mix.safetensors").unlink()
