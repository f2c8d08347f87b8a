"""The pack in a running ComfyUI server, driven by HTTP as headless users drive it."""

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from safetensors import safe_open

from tests.nodes import two_models
from tests.nodes.pack import LIST, example, one_node

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "example_workflows" / "api").glob("*.json"))
NODES = {
    "LoraAlloyLoader", "LoraAlloyStack", "LoraAlloyMethod", "LoraAlloyMerge", "LoraAlloyApply",
    "LoraAlloySave", "LoraAlloyInspect", "LoraAlloyRecipe", "LoraAlloySweep", "LoraAlloyGrid",
    "LoraAlloyRecord", "LoraAlloyMeasure", "LoraAlloyDistill", "LoraAlloyMergeLoaded", "LoraAlloyExtract",
}  # fmt: skip


def failure(entry):
    """The message of the node that failed."""
    messages = dict(entry["status"]["messages"])
    assert entry["status"]["status_str"] == "error", entry["status"]
    return messages["execution_error"]["exception_message"]


def test_the_pack_is_loaded(server):
    """All nodes, from the pack's folder, with a tooltip on every input."""
    info = server.get("/object_info")
    found = {name for name, node in info.items() if "any_folder-name" in node.get("python_module", "")}
    assert found == NODES
    for name in NODES:
        for group in ("required", "optional"):
            for given, spec in info[name]["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), (name, given)
        assert all(info[name]["output_tooltips"]) and info[name]["description"]
    log = server.log.read_text()
    assert not re.search(r"IMPORT FAILED.*any_folder-name", log)
    assert re.search(r"[\d.]+ seconds: .*any_folder-name", log)


def test_templates_have_thumbnails(server):
    """The template browser lists the examples of the editor and nothing else, each with a picture."""
    listed = server.get("/workflow_templates")["any_folder-name"]
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
    for name in listed:
        with server.open(f"/api/workflow_templates/any_folder-name/{quote(name)}.jpg") as answer:
            assert Image.open(answer).size == (800, 450)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(server, path, request):
    """Each example workflow in API format, on the tiny model."""
    if path.stem.startswith("language"):
        if "TextGenerate" not in server.get("/object_info"):
            pytest.skip("this ComfyUI has no TextGenerate")
        request.getfixturevalue("language")
    if path == two_models.EXAMPLE:
        two_models.write_files(server.base)
        entry = server.run(two_models.two_models())
    else:
        entry = server.run(example(path))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert entry["outputs"]


def test_extracting_a_lora(server):
    """Of a model with LoRAs on it: what the node says, the file, and one model twice."""
    workflow = example(ROOT / "example_workflows" / "api" / "Extract a LoRA from a model.json")
    workflow["24"]["inputs"] |= {"energy": 0, "rank": 64}
    outputs = server.run(workflow)["outputs"]
    said = "".join(outputs["24"]["text"])
    assert re.match(r"extracted \d+ layers, ranks? \d+", said) and "keeps all of the difference" in said
    (text,) = outputs["15"]["text"]
    assert "loras/extracted_" in text and "kohya, read back and compared" in text
    workflow["24"]["inputs"]["tuned"] = ["4", 0]
    workflow["24"]["inputs"]["tuned_clip"] = ["4", 1]
    assert "tuned and base are the same in all" in failure(server.run(workflow))
    workflow["24"]["inputs"]["base_clip"] = ["10", 1]
    del workflow["24"]["inputs"]["tuned_clip"]
    assert "connect the text encoders of both models" in failure(server.run(workflow))


def test_recipes_give_their_own_pictures(server):
    """Two methods one after the other give two pictures, and the first again gives the first picture."""
    first = server.image(server.run(one_node(method="linear", **{"method.density": None})))
    second = server.image(server.run(one_node(method="ties")))
    plain = server.image(server.run(one_node(loras="")))
    again = server.image(server.run(one_node(method="linear", strength=1.0, **{"method.density": None})))
    assert len({first, second, plain}) == 3
    assert again == first


def test_the_stock_chain_gives_the_same_picture(server):
    """Method linear against two Load LoRA nodes of ComfyUI, to the last pixel."""
    chain = one_node()
    chain["20"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["4", 0], "clip": ["4", 1], "lora_name": "sd15_a.safetensors", "strength_model": 0.7,
            "strength_clip": 0.4,
        },
    }  # fmt: skip
    chain["10"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["20", 0], "clip": ["20", 1], "lora_name": "sd15_b.safetensors", "strength_model": -0.5,
            "strength_clip": 0.9,
        },
    }  # fmt: skip
    ours = server.image(server.run(one_node(method="linear", **{"method.density": None})))
    assert server.image(server.run(chain)) == ours


def test_unchanged_inputs_are_cached(server):
    """The same workflow again runs nothing."""
    workflow = one_node(method="ties", **{"method.density": 0.3})
    server.run(workflow)
    messages = dict(server.run(workflow)["status"]["messages"])
    assert "10" in messages["execution_cached"]["nodes"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"method": "tise"}, "did you mean 'ties'"),
        ({"method.density": 1.5}, "density"),
        ({"loras": "<lora:gone.safetensors:1>"}, "gone.safetensors"),
        ({"loras": "nonsense"}, "line 1"),
        ({"loras": "<lora:../../secret.safetensors:1>"}, "no LoRA file"),
    ],
)
def test_refused_at_the_door(server, inputs, says):
    """Refused when it is queued, with a sentence on the node."""
    status, answer = server.post("/prompt", {"prompt": one_node(**inputs)})
    assert status == 400
    errors = answer["node_errors"]["10"]["errors"]
    assert any(says in error["details"] + error["message"] for error in errors), errors


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"loras": "<lora:flux_only:1>"}, "another base model"),
        ({"loras": "<lora:nan:1>"}, "NaN"),
        ({"loras": "<lora:wide:1>"}, "another base model"),
    ],
)
def test_refused_by_the_node(server, inputs, says):
    """Found out when the node runs: an error on the node, and no picture."""
    entry = server.run(one_node(**inputs))
    assert says in failure(entry)
    assert "9" not in entry["outputs"]


def inspecting(lines=LIST, **inputs):
    """Inspect LoRAs, its picture saved by ComfyUI's own Save Image."""
    picture = {"images": ["16", 2], "filename_prefix": "inspected"}
    return {
        "11": {"class_type": "LoraAlloyStack", "inputs": {"loras": lines}},
        "16": {"class_type": "LoraAlloyInspect", "inputs": {"stack": ["11", 0]} | inputs},
        "9": {"class_type": "SaveImage", "inputs": picture},
    }


def test_views_of_inspect_are_pictures(server):
    """Each view is another picture, on the node and as an image; the spectrum follows its energy."""
    choices = [{"view": view} for view in ("similarity", "sign_conflict", "norms", "spectrum")]
    choices.append({"view": "spectrum", "view.energy": 0.5})
    entries = [server.run(inspecting(**chosen)) for chosen in choices]
    pictures = [server.image(entry) for entry in entries]
    assert len(set(pictures)) == len(choices)
    assert [server.image(entry, "16") for entry in entries] == pictures
    assert all("sd15_a" in entry["outputs"]["16"]["text"][0] for entry in entries)
    assert server.image(server.run(inspecting())) == pictures[0], "similarity, if nothing is said"
    one = LIST.splitlines()[0]
    assert server.image(server.run(inspecting(one))) == server.image(
        server.run(inspecting(one, view="spectrum"))
    )


def test_a_misspelled_view_is_refused(server):
    """At the door where ComfyUI asks the node, else by the node."""
    status, answer = server.post("/prompt", {"prompt": inspecting(view="similarty")})
    assert status == 400 and "did you mean 'similarity'" in json.dumps(answer["node_errors"]["16"])
    assert "it belongs to view spectrum" in failure(
        server.run(inspecting(view="norms", **{"view.energy": 0.9}))
    )


def test_a_merge_says_how_it_went(server):
    """One line on the node: LoRAs, method, layers, rank, energy, seconds."""
    entry = server.run(one_node(method="ties", rank=3, **{"method.density": 0.4}))
    line = entry["outputs"]["10"]["text"][0].splitlines()[0]
    wanted = r"ties of 2 LoRAs, \d+ layers, rank 3, \d+\.\d % of the energy kept, \d+\.\d s"
    assert re.fullmatch(wanted, line), line


def test_a_saved_merge_is_seen_at_once(server):
    """The stock Load LoRA lists the file and loads it; the recipe is in it; nothing is overwritten."""
    workflow = one_node(method="linear", **{"method.density": None})
    save = {"lora": ["10", 2], "filename_prefix": "loras/served", "dtype": "float32"}
    workflow["15"] = {"class_type": "LoraAlloySave", "inputs": save}
    entry = server.run(workflow)
    text = entry["outputs"]["15"]["text"][0]
    assert "read back and compared" in text
    name = re.search(r"served_\d+_\.safetensors", text)[0]
    listed = server.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert name in listed
    with safe_open(server.base / "output" / "loras" / name, "pt") as file:
        recipe = json.loads(file.metadata()["lora_alloy"])
    assert [source["weight"] for source in recipe["sources"]] == [0.7, -0.5]
    assert str(server.base) not in json.dumps(recipe)
    stock = one_node()
    stock["10"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": ["4", 0], "clip": ["4", 1], "lora_name": name, "strength_model": 1.0,
            "strength_clip": 1.0,
        },
    }  # fmt: skip
    assert server.run(stock)["status"]["status_str"] == "success"
    second = server.run(workflow | {"15": {"class_type": "LoraAlloySave", "inputs": save | {"rank": 3}}})
    assert re.search(r"served_\d+_\.safetensors", second["outputs"]["15"]["text"][0])[0] != name
