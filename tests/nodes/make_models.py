"""Run by ComfyUI's interpreter: tiny seeded models that its stock loaders detect.

    python make_models.py MODELS_FOLDER

Shapes come from ComfyUI's own classes on the meta device. The sizes are the smallest that detection allows.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

OUT = Path(sys.argv[1])
sys.path.insert(0, str(Path.cwd()))
sys.argv = ["main.py", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_model  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.flux.model import Flux  # noqa: E402
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.ldm.wan.model import WanModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

META = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}


def unet(**config):
    common = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False,
        "use_spatial_transformer": True, "use_temporal_attention": False, "use_temporal_resblock": False,
        "transformer_depth_middle": 1,
    }  # fmt: skip
    return UNetModel(**common, **config, **META)


def sd15():
    return unet(
        context_dim=768, use_linear_in_transformer=False, adm_in_channels=None, num_heads=8,
        num_res_blocks=[1, 1], channel_mult=[1, 1], transformer_depth=[1, 1],
        transformer_depth_output=[1, 1, 1, 1],
    )  # fmt: skip


def sdxl():
    # the shortest transformer_depth that detection knows is that of KOALA-700M, a subclass of SDXL
    return unet(
        context_dim=2048, use_linear_in_transformer=True, adm_in_channels=2816, num_classes="sequential",
        num_head_channels=64, num_res_blocks=[1, 1, 1], channel_mult=[1, 1, 1], transformer_depth=[0, 2, 5],
        transformer_depth_output=[0, 0, 1, 1, 1, 1],
    )  # fmt: skip


def flux():
    return Flux(
        in_channels=16, out_channels=16, vec_in_dim=64, context_in_dim=96, hidden_size=256, mlp_ratio=4.0,
        num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
        qkv_bias=True, guidance_embed=False, txt_ids_dims=[], **META,
    )  # fmt: skip


def sd3():
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": 96, "out_features": 128}}
    return MMDiT(
        input_size=None, patch_size=2, in_channels=16, out_channels=16, depth=2, adm_in_channels=64,
        context_embedder_config=embedder, num_patches=1024, pos_embed_max_size=32,
        pos_embed_scaling_factor=None, qk_norm="rms", **META,
    )  # fmt: skip


def wan():
    sizes = {"in_dim": 16, "out_dim": 16, "dim": 256, "ffn_dim": 512, "num_heads": 2, "num_layers": 2}
    return WanModel(model_type="t2v", **sizes, **META)


def filled(module, prefix=""):
    """Seeded weights in float16: the same name and shape always give the same tensor."""
    tensors = {}
    for key, shaped in module.state_dict().items():
        name, shape = prefix + key, tuple(shaped.shape)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if key.endswith("weight") and len(shape) > 1:
            scale = 0.02 if "embedding" in key else 0.8 / math.sqrt(math.prod(shape[1:]))
            noise = noise * scale
        elif key.endswith(("weight", "scale")):
            noise = 1 + 0.02 * noise
        else:
            noise = 0.02 * noise
        tensors[name] = noise.half().contiguous()
    return tensors


def clip_l():
    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    text = comfy.clip_model.CLIPTextModel(config, **META)
    prefix = "cond_stage_model.transformer."
    return {key: t for key, t in filled(text, prefix).items() if "text_projection" not in key}


def vae():
    with torch.device("meta"):
        model = TAESD(latent_channels=4)
    tensors = filled(model, "first_stage_model.")
    tensors["first_stage_model.vae_scale"] = torch.tensor(0.18215)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    return tensors


def main():
    for folder in ("diffusion_models", "checkpoints"):
        (OUT / folder).mkdir(parents=True, exist_ok=True)
    for make in (sdxl, flux, sd3, wan):
        save_file(filled(make()), OUT / "diffusion_models" / f"tiny_{make.__name__}.safetensors")
    whole = filled(sd15(), "model.diffusion_model.") | clip_l() | vae()
    save_file(whole, OUT / "checkpoints" / "tiny_sd15.safetensors", {"format": "pt"})


main()
