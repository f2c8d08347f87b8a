"""PEFT adapters on language models that ComfyUI holds as CLIP: the text that a real server generates."""

import re
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.nodes.make_language_models import fused, metadata_of
from tests.nodes.pack import example

ROOT = Path(__file__).parents[2]
BOTH = "<lora:spoken_a:0.7:0.4>\n<lora:spoken_b:-0.5:0.9>"


def speaking(lines=BOTH, strength=1.0, model="spoken", method="linear"):
    """The example with other LoRAs, another strength or another model."""
    workflow = example(ROOT / "example_workflows" / "api" / "language_model.json")
    workflow["1"]["inputs"]["name"] = f"{model}.safetensors"
    workflow["11"]["inputs"]["loras"] = lines
    workflow["12"]["inputs"] = {"method": method}
    workflow["14"]["inputs"]["strength_clip"] = strength
    workflow["15"]["inputs"]["max_length"] = 12
    return workflow


def without_lora(model):
    workflow = speaking(model=model)
    workflow["15"]["inputs"]["clip"] = ["1", 0]
    return {name: workflow[name] for name in ("1", "15", "16")}


@pytest.fixture
def said(server, language):
    """The text that a workflow generates."""
    if "TextGenerate" not in server.get("/object_info"):
        pytest.skip("this ComfyUI has no TextGenerate")

    def run(workflow):
        entry = server.run(workflow)
        assert entry["status"]["status_str"] == "success", entry["status"]
        return entry["outputs"]["16"]["text"][0]

    return run


def test_generated_text_is_that_of_the_merged_adapters(said, server):
    """The text changes, is that of PEFT's fused weights, and comes back at strength 0; saving keeps it."""
    models = server.base / "models"
    path = models / "text_encoders" / "spoken_fused.safetensors"
    save_file(fused(models, "spoken"), path, metadata_of(models, "spoken"))
    before, after = said(without_lora("spoken")), said(speaking())
    assert after != before
    assert after == said(without_lora("spoken_fused"))
    assert said(speaking(strength=0.0)) == before
    assert said(speaking(method="ties")) not in (before, after)
    save = {"lora": ["13", 0], "filename_prefix": "loras/spoken_merged", "dtype": "float32"}
    entry = server.run(speaking() | {"17": {"class_type": "LoraAlloySave", "inputs": save}})
    name = re.search(r"spoken_merged_\d+_", entry["outputs"]["17"]["text"][0])[0]
    assert (server.base / "output" / "loras" / name / "adapter_config.json").is_file()
    assert said(speaking(f"<lora:{name}>")) == after
