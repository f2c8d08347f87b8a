"""Weights of a part of a checkpoint, and changes of them."""

import torch
from safetensors.torch import load_file

import merge_ops

UNET = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0"
CLIP = "cond_stage_model.transformer.text_model"
# a part of a checkpoint of SD1.x: a linear layer, text that comes in, convolutions, a bias, norms, a CLIP
SD1 = {
    f"{UNET}.attn1.to_q.weight": (160, 160),
    f"{UNET}.attn2.to_k.weight": (160, 768),
    f"{UNET}.norm1.weight": (160,),
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": (160, 160, 3, 3),
    "model.diffusion_model.input_blocks.1.0.in_layers.2.bias": (160,),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (160, 160, 1, 1),
    f"{CLIP}.encoder.layers.0.self_attn.q_proj.weight": (192, 192),
    f"{CLIP}.encoder.layers.0.layer_norm1.weight": (192,),
    f"{CLIP}.embeddings.token_embedding.weight": (300, 192),
}


def random_weights(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.03 for name, shape in shapes.items()}


def low_rank(shape, rank, generator):
    """A change of a weight: of a rank where it is a matrix or a kernel."""
    if len(shape) == 1:
        return torch.randn(shape, generator=generator) * 1e-3
    up = torch.randn(shape[0], rank, generator=generator)
    return (up @ torch.randn(rank, torch.Size(shape[1:]).numel(), generator=generator)).view(shape) * 1e-3


def tuned_from(base, rank=4, only=""):
    """The weights of a base with a change of a rank in each whose name has ``only`` in it."""
    generator = torch.Generator().manual_seed(1)
    changes = {name: low_rank(weight.shape, rank, generator) for name, weight in base.items() if only in name}
    return {name: weight + changes[name] if name in changes else weight for name, weight in base.items()}


def differences(tuned, base):
    one, other = load_file(tuned), load_file(base)
    return {name: one[name].float() - other[name].float() for name in other}


def assert_equal_deltas(lora, wanted):
    """Each layer of a LoRA is one of the differences, whatever its name."""
    left = list(wanted.values())
    for name in lora.layers:
        delta = merge_ops.merge([lora]).delta(name)
        match = next(
            i
            for i, each in enumerate(left)
            if each.numel() == delta.numel() and torch.allclose(each.view_as(delta), delta, atol=5e-6)
        )
        left.pop(match)
    assert not left
