"""One list for two models through the server: what is sampled, said, saved and refused."""

import json

import pytest
import torch
from safetensors import safe_open

from tests.nodes.two_models import latent, two_models, write_files

HIGH, LOW, INK = (f"<lora:{name}:0.8>" for name in ("style_high_noise", "style_low_noise", "wan_ink"))
TIES = {"method": "ties", "method.density": 0.3}
PLACES = {"model": 0, "lora": 2, "hooks": 5, "model_low": 6, "lora_low": 7, "hooks_low": 8}


@pytest.fixture(autouse=True, scope="module")
def pair(server):
    """Two tiny models and LoRAs for them."""
    write_files(server.base)


def failure(entry):
    return dict(entry["status"]["messages"])["execution_error"]["exception_message"]


def with_two_nodes(high, low, **inputs):
    """A node of its own for each model."""
    workflow = two_models(high, **inputs)
    del workflow["10"]["inputs"]["model_low"]
    own = {**workflow["10"]["inputs"], "model": ["38", 0], "loras": low}
    workflow["11"] = {"class_type": "LoraAlloyLoader", "inputs": own}
    workflow["55"]["inputs"]["model"] = ["11", 0]
    return workflow


def with_core_nodes(high, low):
    """ComfyUI's own Load LoRA (Model), one after the other; each a list of ``(file, strength)``."""
    workflow = two_models()
    del workflow["10"]
    for start, rows, sampling in (("37", high, "54"), ("38", low, "55")):
        before = start
        for number, (file, strength) in enumerate(rows):
            inputs = {"model": [before, 0], "lora_name": f"{file}.safetensors", "strength_model": strength}
            before = f"{start}{number}"
            workflow[before] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
        workflow[sampling]["inputs"]["model"] = [before, 0]
    return workflow


def test_places_of_the_outputs(server):
    """A saved graph keeps links by their places: what came later is behind what was there."""
    info = server.get("/object_info")
    names = info["LoraAlloyLoader"]["output_name"]
    assert {name: names.index(name) for name in PLACES} == PLACES
    assert info["LoraAlloyMerge"]["output_name"] == ["lora", "report", "hooks", "lora_low", "hooks_low"]


@pytest.mark.parametrize("inputs", [{"method": "linear"}, TIES], ids=["linear", "ties"])
def test_each_model_is_sampled_as_with_a_node_of_its_own(server, inputs):
    """Bit for bit; with ``linear`` also as with ComfyUI's own loaders."""
    found, entry = latent(server, two_models("\n".join((HIGH, LOW, INK)), **inputs))
    nodes, _ = latent(server, with_two_nodes(f"{HIGH}\n{INK}", f"{LOW}\n{INK}", **inputs))
    assert torch.equal(found, nodes)
    lines = entry["outputs"]["10"]["text"][0].splitlines()
    method = inputs["method"]
    assert lines[0].startswith(f"high-noise model: {method} of 2 LoRAs, ")
    assert lines[0].endswith(": style_high_noise (by its name), wan_ink")
    assert lines[1].startswith(f"low-noise model: {method} of 2 LoRAs, ")
    assert lines[1].endswith(": style_low_noise (by its name), wan_ink")
    both = [("style_high_noise", 0.8), ("wan_ink", 0.8)], [("style_low_noise", 0.8), ("wan_ink", 0.8)]
    core, _ = latent(server, with_core_nodes(*both))
    assert torch.equal(found, core) == (method == "linear")
    swapped = "\n".join((HIGH.replace(">", ":on=low>"), LOW.replace(">", ":on=high>"), INK))
    other, entry = latent(server, two_models(swapped, **inputs))
    assert not torch.allclose(other, found, rtol=1e-3, atol=1e-4)
    nodes, _ = latent(server, with_two_nodes(f"{LOW}\n{INK}", f"{HIGH}\n{INK}", **inputs))
    assert torch.equal(other, nodes) and "style_low_noise (on=high)" in entry["outputs"]["10"]["text"][0]


def test_steps_and_hints(server):
    """Strengths over the sampling in one model; a name with a bare word is for both, and the node says so."""
    text = f"{HIGH.replace('>', ':steps=0-0.3>')}\n<lora:fox_HIGH:0.5>"
    found, entry = latent(server, two_models(text))
    nodes, _ = latent(server, with_two_nodes(text, "<lora:fox_HIGH:0.5>"))
    assert torch.equal(found, nodes)
    assert "fox_HIGH is merged for both models" in "".join(entry["outputs"]["10"]["warnings"])


def test_both_are_saved(server):
    """By both merge nodes; each file has the LoRAs of its model in its recipe."""
    workflow = two_models("\n".join((HIGH, LOW, INK)), **TIES)
    workflow["12"] = {"class_type": "LoraAlloyStack", "inputs": {"loras": "\n".join((HIGH, LOW, INK))}}
    models = {"model": ["37", 0], "model_low": ["38", 0]}
    workflow["13"] = {"class_type": "LoraAlloyMerge", "inputs": {"stack": ["12", 0], **models}}
    links = {"20": ["10", 2], "21": ["10", 7], "22": ["13", 0], "23": ["13", 3]}
    for number, link in links.items():
        inputs = {"lora": link, "filename_prefix": f"loras/pair_{number}", "dtype": "float32", "rank": 8}
        workflow[number] = {"class_type": "LoraAlloySave", "inputs": inputs}
    outputs = server.run(workflow)["outputs"]
    for number in links:
        file = outputs[number]["text"][0].partition(":")[0]
        with safe_open(server.base / "output" / file, "pt") as saved:
            recipe = json.loads(saved.metadata()["lora_alloy"])
        style = "style_high_noise" if number in ("20", "22") else "style_low_noise"
        assert [source["name"] for source in recipe["sources"]] == [style, "wan_ink"], recipe


def test_refused(server):
    """A row for a model that is missing, and a low-noise model of another architecture."""
    workflow = with_two_nodes(f"{INK}\n{LOW.replace('>', ':on=low>')}", INK)
    assert "is for the low-noise model (on=low): connect model_low" in failure(server.run(workflow))
    workflow = two_models(INK)
    workflow["38"]["inputs"]["unet_name"] = "tiny_flux.safetensors"
    said = failure(server.run(workflow))
    assert "low-noise model (model_low): wan_ink does not fit this model" in said
    status, answer = server.post("/prompt", {"prompt": two_models(INK.replace(">", ":on=up>"))})
    assert status == 400 and "on=up is none of" in json.dumps(answer["node_errors"])
