"""The example with two models of Wan 2.2 at the size of tiny ones, and files for it."""

import json

import torch
from safetensors.torch import load_file, save_file

from tests.nodes.pack import ROOT

EXAMPLE = ROOT / "example_workflows" / "api" / "Two models of Wan 2.2.json"
MODELS = {"37": "tiny_wan.safetensors", "38": "tiny_wan_low.safetensors"}
LORAS = ("style_high_noise", "style_low_noise", "fox_HIGH", "wan_ink")


def write_files(base):
    """The low-noise model, and LoRAs on the linear layers of both; what is there already stays."""
    models, loras = base / "models" / "diffusion_models", base / "models" / "loras"
    low = models / MODELS["38"]
    if low.exists():
        return
    state = load_file(models / MODELS["37"])
    save_file({key: tensor * 0.9 if tensor.ndim > 1 else tensor for key, tensor in state.items()}, low)
    for seed, name in enumerate(LORAS):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, weight in state.items():
            if key.startswith("blocks.") and weight.ndim == 2:
                stem = f"diffusion_model.{key.removesuffix('.weight')}"
                tensors[f"{stem}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator) * 0.1
                tensors[f"{stem}.lora_A.weight"] = torch.randn(4, weight.shape[1], generator=generator) * 0.1
        save_file(tensors, loras / f"{name}.safetensors")


def two_models(loras=None, **inputs):
    """The example on the tiny models, which saves the latent in node 9; ``inputs`` are those of node 10."""
    workflow = json.loads(EXAMPLE.read_text(encoding="utf-8").replace("character.", "wan_ink."))
    for number, file in MODELS.items():
        workflow[number]["inputs"]["unet_name"] = file
    for number in ("6", "7"):
        workflow[number] = {
            "class_type": "TinyPrompt",
            "inputs": {"text": workflow[number]["inputs"]["text"]},
        }
    workflow["61"]["inputs"] |= {"width": 64, "height": 64, "length": 5}
    for number, ends in (("57", (0, 1)), ("58", (1, 2))):
        workflow[number]["inputs"] |= {"steps": 2, "start_at_step": ends[0], "end_at_step": ends[1]}
    for number in ("39", "40", "8", "60"):
        del workflow[number]
    workflow["9"] = {"class_type": "SaveLatent", "inputs": {"samples": ["58", 0], "filename_prefix": "wan"}}
    if loras is not None:
        inputs["loras"] = loras
    workflow["10"]["inputs"] |= inputs
    return workflow


def latent(server, workflow):
    """The latent that a workflow saves, and the entry of its history."""
    entry = server.run(workflow)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (saved,) = entry["outputs"]["9"]["latents"]
    return load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"], entry
