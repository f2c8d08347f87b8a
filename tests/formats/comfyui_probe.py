"""Run by ComfyUI's interpreter: which layers ComfyUI finds in LoRA files, and what it adds to their weights.

    python comfyui_probe.py COMFYUI_DIR OUT_DIR [FILE ...]

A file is tried on the model that the first word of its name says: sd15, sdxl or flux. Writes ``names.json``,
ComfyUI's table of diffusers' names, and one ``.safetensors`` of deltas a file.
"""

import json
import logging
import sys
import types
from pathlib import Path

root, out, files = Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
sys.path[0] = str(root)
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.flux.model import Flux  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

META = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
COMMON = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "legacy": False,
    "use_spatial_transformer": True, "use_temporal_attention": False, "use_temporal_resblock": False,
    "context_dim": 16,
}  # fmt: skip
CONFIGS = {
    "sd15": COMMON | {
        "num_res_blocks": [2] * 4, "channel_mult": [1, 1, 2, 2], "transformer_depth": [1] * 6 + [0] * 2,
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1, "num_heads": 2,
        "use_linear_in_transformer": False, "adm_in_channels": None,
    },
    "sdxl": COMMON | {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 3, 3],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3], "transformer_depth_middle": 3,
        "num_head_channels": 32, "use_linear_in_transformer": True, "adm_in_channels": 64,
        "num_classes": "sequential",
    },
}  # fmt: skip


def light(network, config):
    """As much of a ComfyUI model as its key maps look at."""
    model = torch.nn.Module()
    model.diffusion_model = network
    model.model_config = types.SimpleNamespace(unet_config=config)
    return model


def flux():
    return Flux(
        in_channels=16, out_channels=16, vec_in_dim=8, context_in_dim=8, hidden_size=64, mlp_ratio=2.0,
        num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12], theta=10000, patch_size=2,
        qkv_bias=True, guidance_embed=False, txt_ids_dims=[], **META,
    )  # fmt: skip


def clip():
    """The text model that ComfyUI would hold, by the names and shapes of its weights."""
    shapes = {f"self_attn.{name}_proj": (16, 16) for name in ("q", "k", "v", "out")}
    shapes |= {"mlp.fc1": (32, 16), "mlp.fc2": (16, 32)}
    layers = {
        f"clip_l.transformer.text_model.encoder.layers.{i}.{name}.weight": torch.empty(shape, device="meta")
        for i in range(2)
        for name, shape in shapes.items()
    }
    return types.SimpleNamespace(state_dict=lambda: layers)


def deltas(file, model, text):
    """Everything that ComfyUI would add at strength 1; a key that it does not find is an error."""
    keys = comfy.lora.model_lora_keys_unet(model, {})
    weights = model.state_dict()
    if text is not None:
        keys = comfy.lora.model_lora_keys_clip(text, keys)
        weights |= text.state_dict()
    patches = comfy.lora.load_lora(comfy.utils.load_torch_file(str(file), safe_load=True), keys)
    found = {}
    for key, adapter in patches.items():
        weight = torch.zeros(weights[key].shape)
        found[key] = adapter.calculate_weight(weight, key, 1.0, 1.0, None, lambda x: x).contiguous()
    return found


missed = []
logging.getLogger().addHandler(
    type("Missed", (logging.Handler,), {"emit": lambda self, r: missed.append(r)})()
)
names = {name: comfy.utils.unet_to_diffusers(config) for name, config in CONFIGS.items()}
(out / "names.json").write_text(json.dumps(names))
models = {name: light(UNetModel(**config, **META), config) for name, config in CONFIGS.items()}
models["flux"] = light(flux(), {})
for path in files:
    kind = path.name.split("_")[0]
    save_file(deltas(path, models[kind], clip() if kind == "sd15" else None), out / path.name)
lost = [record.getMessage() for record in missed if record.levelno >= logging.WARNING]
if any("not loaded" in message or "ERROR" in message for message in lost):
    sys.exit("\n".join(lost[:20]))
