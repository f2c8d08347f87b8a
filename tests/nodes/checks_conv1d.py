"""Checks of PEFT's ``fan_in_fan_out``: no weight in ComfyUI is stored (in, out), as Conv1D's are."""

import json

import torch
from comfy_inside import LORAS, assert_close, check, load_model, patched, run
from safetensors.torch import save_file

PATHS = [f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_{part}" for part in "qk"]
KEYS = [f"diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_{part}.weight" for part in "qk"]


def write_folder(shapes, is_dora, flag):
    """A PEFT folder on a square weight and on another."""
    random, tensors = torch.Generator().manual_seed(5), {}
    for path, (rows, columns) in zip(PATHS, shapes, strict=True):
        stem = f"base_model.model.{path}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(4, columns, generator=random) * 0.1
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, 4, generator=random) * 0.1
        if is_dora:
            tensors[f"{stem}.lora_magnitude_vector"] = 1 + torch.rand(rows, generator=random)
    folder = LORAS / f"stored_{is_dora}_{flag}"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": is_dora, "fan_in_fan_out": flag}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder.name


@check
def the_flag_of_conv1d_changes_nothing():
    """As in PEFT, which takes it back for linear layers; a DoRA too, whose change depends on the weight."""
    model, _ = load_model("sd15")
    weights = model.model.state_dict()
    shapes = [tuple(weights[key].shape) for key in KEYS]
    assert shapes[0][0] == shapes[0][1] and shapes[1][0] != shapes[1][1], shapes
    for is_dora in (False, True):
        for method in ({"method": "linear"}, {"method": "ties", "density": 0.5}):
            results = [
                patched(run("LoraAlloyLoader", model=model, method=method,
                            loras=f"<lora:{write_folder(shapes, is_dora, flag)}:0.7>")[0])
                for flag in (False, True)
            ]  # fmt: skip
            assert sorted(results[0]) == sorted(KEYS), list(results[0])
            assert_close(results[1], results[0], f"DoRA {is_dora}, {method}", 0.0)
