"""Tiny single-file checkpoints for the tests of fusing, with the names of real ones."""

import torch
from safetensors.torch import save_file

WIDTH = 8
BLOCK = "input_blocks.1.1.transformer_blocks.0"
TEXT = "text_model.encoder.layers.0"

UNET = "model.diffusion_model."
KOHYA = {
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (WIDTH, WIDTH),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (WIDTH, 16),
    "lora_unet_down_blocks_0_attentions_0_proj_in": (WIDTH, WIDTH),
    "lora_unet_down_blocks_0_resnets_0_conv1": (WIDTH, WIDTH, 3, 3),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (WIDTH, WIDTH),
    "lora_te2_text_model_encoder_layers_0_self_attn_k_proj": (WIDTH, WIDTH),
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": (4 * WIDTH, WIDTH),
}
CHANGED = {
    f"{UNET}{BLOCK}.attn1.to_q.weight", f"{UNET}{BLOCK}.attn2.to_k.weight",
    f"{UNET}input_blocks.1.1.proj_in.weight", f"{UNET}input_blocks.1.0.in_layers.2.weight",
    f"conditioner.embedders.0.transformer.{TEXT}.self_attn.q_proj.weight",
    "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight",
    "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight",
}  # fmt: skip
FLUX_ORIGINAL = {
    "diffusion_model.double_blocks.0.img_attn.qkv": (3 * WIDTH, WIDTH),
    "diffusion_model.single_blocks.0.linear1": (7 * WIDTH, WIDTH),
    "diffusion_model.final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
}
FLUX_DIFFUSERS = {
    "transformer.transformer_blocks.0.attn.to_k": (WIDTH, WIDTH),
    "transformer.single_transformer_blocks.0.attn.to_v": (WIDTH, WIDTH),
    "transformer.single_transformer_blocks.0.proj_mlp": (4 * WIDTH, WIDTH),
    "transformer.norm_out.linear": (2 * WIDTH, WIDTH),
}


def noise(*shape, seed=0, dtype=torch.float16, size=0.1):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * size).to(dtype)


def whole_checkpoint(dtype=torch.float16):
    """A whole checkpoint of SDXL's names: UNet, both text encoders, VAE, schedule, weights of the average."""
    unet = {
        f"{BLOCK}.attn1.to_q.weight": (WIDTH, WIDTH),
        f"{BLOCK}.attn2.to_k.weight": (WIDTH, 16),
        f"{BLOCK}.norm1.weight": (WIDTH,),
        "input_blocks.1.1.proj_in.weight": (WIDTH, WIDTH, 1, 1),
        "input_blocks.1.0.in_layers.2.weight": (WIDTH, WIDTH, 3, 3),
        "input_blocks.1.0.in_layers.2.bias": (WIDTH,),
    }
    clip_l = {f"{TEXT}.self_attn.q_proj.weight": (WIDTH, WIDTH), f"{TEXT}.mlp.fc1.bias": (WIDTH,)}
    clip_g = {
        "transformer.resblocks.0.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "transformer.resblocks.0.mlp.c_fc.weight": (4 * WIDTH, WIDTH),
        "text_projection": (WIDTH, 6),
    }
    named = [
        ("first_stage_model.", {"decoder.conv_in.weight": (4, 4, 3, 3)}),
        ("conditioner.embedders.1.model.", clip_g),
        ("model.diffusion_model.", unet),
        ("conditioner.embedders.0.transformer.", clip_l),
        ("model_ema.", {"diffusion_modelinput_blocks11proj_inweight": (WIDTH, WIDTH, 1, 1)}),
    ]
    tensors = {
        prefix + name: noise(*shape, seed=len(prefix), dtype=dtype)
        for prefix, shapes in named
        for name, shape in shapes.items()
    }
    return tensors | {"alphas_cumprod": noise(10, dtype=torch.float32), "v_pred": torch.tensor([])}


def flux_blocks(layout, dtype=torch.float16):
    """One block of each kind of Flux, in ComfyUI's layout or in that of diffusers, with the same numbers."""
    qkv, bias = noise(3 * WIDTH, WIDTH, seed=1, dtype=dtype), noise(3 * WIDTH, seed=2, dtype=dtype)
    linear1 = noise(7 * WIDTH, WIDTH, seed=3, dtype=dtype)
    norm = noise(2 * WIDTH, WIDTH, seed=4, dtype=dtype)
    if layout == "comfyui":
        return {
            "double_blocks.0.img_attn.qkv.weight": qkv,
            "double_blocks.0.img_attn.qkv.bias": bias,
            "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(4, dtype=dtype),
            "single_blocks.0.linear1.weight": linear1,
            "final_layer.adaLN_modulation.1.weight": norm,
        }
    parts = dict(zip(("to_q", "to_k", "to_v"), qkv.split(WIDTH), strict=True))
    biases = dict(zip(("to_q", "to_k", "to_v"), bias.split(WIDTH), strict=True))
    block, single = "transformer_blocks.0.attn.", "single_transformer_blocks.0."
    tensors = {f"{block}{name}.weight": part for name, part in parts.items()}
    tensors |= {f"{block}{name}.bias": part for name, part in biases.items()}
    ends = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    rows = linear1.split([WIDTH, WIDTH, WIDTH, 4 * WIDTH])
    tensors |= {f"{single}{name}.weight": part for name, part in zip(ends, rows, strict=True)}
    return tensors | {
        f"{block}norm_q.weight": torch.ones(4, dtype=dtype),
        "norm_out.linear.weight": torch.cat(norm.chunk(2)[::-1]),
    }


def write(file, tensors, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return file


def lora_tensors(stems, rank=2, prefix="", alpha=None):
    """A LoRA in kohya's spelling on weights: stem -> shape."""
    tensors = {}
    for place, (stem, shape) in enumerate(stems.items()):
        kernel = shape[2:]
        tensors[f"{prefix}{stem}.lora_up.weight"] = noise(
            shape[0], rank, *(1 for _ in kernel), seed=place, dtype=torch.float32, size=0.3
        )
        tensors[f"{prefix}{stem}.lora_down.weight"] = noise(
            rank, *shape[1:], seed=place + 9, dtype=torch.float32, size=0.3
        )
        if alpha is not None:
            tensors[f"{prefix}{stem}.alpha"] = torch.tensor(float(alpha))
    return tensors


def names(folder):
    return sorted(path.name for path in folder.iterdir())
