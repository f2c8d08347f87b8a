"""The pack under test, and its example workflows at the size of the tiny models."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = "<lora:sd15_a.safetensors:0.7:0.4>\n<lora:sd15_b.safetensors:-0.5:0.9>"


def pack_module(name):
    """A module of the pack, imported as ComfyUI imports it: the repository root is the package."""
    if "alloy_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "alloy_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["alloy_pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["alloy_pack"])
    return importlib.import_module(f"alloy_pack.{name}")


def example(path):
    """An example workflow, at the size of the tiny model, with LoRA files that are there."""
    text = path.read_text(encoding="utf-8").replace("style.safetensors", "sd15_a.safetensors")
    text = text.replace("place.safetensors", "sd15_c.safetensors").replace(
        "object.safetensors", "sd15_a.safetensors"
    )
    text = text.replace("<lora:poet:", "<lora:spoken_a:").replace("<lora:chef:", "<lora:spoken_b:")
    return at_small_size(json.loads(text.replace("character.safetensors", "sd15_b.safetensors")))


def at_small_size(workflow):
    """The same workflow on the tiny model, with a sweep of density at its ends."""
    for node in workflow.values():
        if node["class_type"] == "CLIPLoader":
            node |= {"class_type": "TinyLanguageModel", "inputs": {"name": "spoken.safetensors"}}
        for name, value in (
            ("ckpt_name", "tiny_sd15.safetensors"),
            ("width", 64),
            ("height", 64),
            ("steps", 2),
        ):
            if name in node["inputs"]:
                node["inputs"][name] = value
        if node["inputs"].get("values") == "0.2, 0.5, 0.8":
            node["inputs"]["values"] = "0.2, 0.8"
    return workflow


def one_node(**inputs):
    """The one-node example with other inputs of the loader; None leaves an input out."""
    workflow = example(ROOT / "example_workflows" / "api" / "Load and merge LoRAs.json")
    loader = workflow["10"]["inputs"] | {"loras": LIST} | inputs
    workflow["10"]["inputs"] = {name: value for name, value in loader.items() if value is not None}
    return workflow
