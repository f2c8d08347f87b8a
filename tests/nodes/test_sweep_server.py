"""Sweeps and grids in a running ComfyUI server, by HTTP."""

import json
import re
import shutil

import pytest

from tests.nodes.editor import BLUEPRINT
from tests.nodes.pack import ROOT, at_small_size, one_node
from tests.nodes.test_server import failure


def unpatched_text(**inputs):
    """The one-node example that leaves the text encoder alone: a value costs one patched model."""
    workflow = one_node(clip=None, **inputs)
    for text in ("6", "7"):
        workflow[text]["inputs"]["clip"] = ["4", 1]
    return workflow


def swept(parameter, values, **inputs):
    """That example with a sweep of one parameter."""
    workflow = unpatched_text(sweep=["30", 0], **inputs)
    sweep = {"class_type": "LoraAlloySweep", "inputs": {"parameter": parameter, "values": values}}
    return workflow | {"30": sweep}


@pytest.mark.parametrize(
    ("parameter", "values", "by_hand"),
    [
        ("density", "0.1, 0.7", {"method.density": 0.7}),
        ("method", "linear, dare_ties", {"method": "dare_ties"}),
        ("strength sd15_b", "-1..1 step 2", {"loras": "<lora:sd15_a:0.7:0.4>\n<lora:sd15_b:1>"}),
        (
            "blocks sd15_b",
            "down:1..0.5 step 0.5 attn:0.8",
            {"loras": "<lora:sd15_a:0.7:0.4>\n<lora:sd15_b:-0.5:0.9:blocks=down:0.5 attn:0.8>"},
        ),
        ("seed", "3..4", {"method": "dare_linear", "seed": 4}),
    ],
)
def test_a_sweep_is_what_each_value_gives(server, parameter, values, by_hand):
    """As many pictures as values, each its own, the last one that of the node with that value."""
    method = "dare_linear" if parameter == "seed" else "ties"
    entry = server.run(swept(parameter, values, method=method))
    assert entry["status"]["status_str"] == "success", entry["status"]
    found = [picture.tobytes() for picture in server.pictures(entry)]
    assert len(set(found)) == len(found) == 2
    assert server.image(server.run(unpatched_text(**{"method": method} | by_hand))) == found[-1]


def test_a_sweep_of_a_clip_strength(server):
    """What the node gives with that second number in its list; the strength for the model stays as it is."""
    sweep = {"class_type": "LoraAlloySweep", "inputs": {"parameter": "clip 2", "values": "0.9, 0.2"}}
    entry = server.run(one_node(sweep=["30", 0]) | {"30": sweep})
    assert entry["status"]["status_str"] == "success", entry["status"]
    found = [picture.tobytes() for picture in server.pictures(entry)]
    rows = "<lora:sd15_a:0.7:0.4>\n<lora:sd15_b:-0.5:{}>"
    assert found == [server.image(server.run(one_node(loras=rows.format(clip)))) for clip in (0.9, 0.2)]
    assert found[0] != found[1]


def test_two_sweeps_make_a_table(server):
    """The workflow of the help page: every value of the one with every value of the other, in one picture."""
    page = (ROOT / "web" / "docs" / "LoraAlloySweep.md").read_text(encoding="utf-8")
    text = re.search(r"```json\n(.*?)```", page, re.DOTALL)[1].replace("<lora:ink", "<lora:sd15_a")
    workflow = at_small_size(json.loads(text.replace("mia", "sd15_b").replace("step 0.3", "step 0.6")))
    entry = server.run(workflow)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (grid,) = server.pictures(entry)
    labels = [line for text in entry["outputs"]["12"]["text"] for line in text.split("\n")]
    assert labels == [f"density={d}, strength sd15_b={s}" for d in (0.2, 0.8) for s in ("0.4", "1")]
    ran = entry["outputs"]["10"]["text"]
    assert [text.split(": ")[0] for text in ran] == labels
    assert grid.width > 2 * 128 and grid.height > 2 * 64
    workflow["12"]["inputs"]["values"] = "0.4"  # what is before a sweep stays as it is
    again = server.run(workflow)
    cached = dict(again["status"]["messages"])["execution_cached"]["nodes"]
    assert {"4", "5", "11"} <= set(cached) and not {"12", "10"} & set(cached)


@pytest.mark.parametrize(
    ("parameter", "values", "says"),
    [
        ("densty", "0.2", "did you mean 'density'"),
        ("density", "0.2, 1.5", "outside [0, 1]"),
        ("density", "0.2-0.8", "cannot read '0.2-0.8'"),
        ("method", "ties, tise", "did you mean 'ties'"),
        ("rank", "", "no values for rank"),
        ("block mia", "down:0", "did you mean 'blocks mia'"),
        ("blocks mia", "dwon:0", "did you mean 'down'"),
    ],
)
def test_refused_at_the_door(server, parameter, values, says):
    """Refused when it is queued, with a sentence on the node."""
    status, answer = server.post("/prompt", {"prompt": swept(parameter, values)})
    assert status == 400
    errors = answer["node_errors"]["30"]["errors"]
    assert any(says in error["details"] for error in errors), errors


@pytest.mark.parametrize(
    ("parameter", "inputs", "says"),
    [
        ("density", {"method": "linear", "method.density": None}, "which method linear does not have"),
        ("strength mia", {}, "has no LoRA 'mia'"),
        ("clip sd15_d", {}, "did you mean 'sd15_"),
    ],
)
def test_refused_by_the_node(server, parameter, inputs, says):
    """Found out when the merge runs."""
    assert says in failure(server.run(swept(parameter, "0.5", **inputs)))


def test_the_blueprint_is_listed(server):
    """With its one node, what goes in and what comes out."""
    listed = server.get("/global_subgraphs")
    ours = {i: entry for i, entry in listed.items() if "any_folder-name" in entry["info"]["node_pack"]}
    (key,) = ours
    assert ours[key]["name"] == BLUEPRINT
    data = json.loads(server.get(f"/global_subgraphs/{key}")["data"])
    (made,), (definition,) = data["nodes"], data["definitions"]["subgraphs"]
    assert made["type"] == definition["id"] and definition["name"] == made["title"] == BLUEPRINT
    assert {"model", "clip", "vae", "latent_image", "loras", "values"} <= {i["name"] for i in made["inputs"]}
    assert [output["type"] for output in made["outputs"]] == ["IMAGE"]
    known = server.get("/object_info")
    assert all(node["type"] in known for node in definition["nodes"])


def test_the_model_of_the_pictures(server):
    """The demo's model, as the pictures of the README show it, draws each merge of a sweep."""
    pytest.importorskip("diffusers")
    folder = server.base / "models" / "loras" / "demo"
    shutil.copytree(ROOT / "merge_ops" / "demo" / "assets" / "loras", folder, dirs_exist_ok=True)
    loras = "<lora:demo/six:1>\n<lora:demo/neon:1>"
    nodes = {
        "1": ("LoraAlloyStack", {"loras": loras}),
        "2": ("LoraAlloySweep", {"parameter": "method", "values": "linear, ties"}),
        "3": ("LoraAlloyMerge", {"stack": ["1", 0], "method": ["2", 0]}),
        "4": ("DemoDigits", {"lora": ["3", 0], "noise": 3}),
        "9": ("SaveImage", {"images": ["4", 0], "filename_prefix": "digits"}),
    }
    workflow = {node: {"class_type": kind, "inputs": inputs} for node, (kind, inputs) in nodes.items()}
    pictures = server.pictures(server.run(workflow))
    shutil.rmtree(folder)
    assert [picture.size for picture in pictures] == [(192, 192)] * 2
    assert pictures[0].tobytes() != pictures[1].tobytes()
