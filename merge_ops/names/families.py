"""Families: names of layers that several models share. The rows say what tells the models apart."""

from __future__ import annotations

from .architecture import Family

UNET = Family(
    "unet",
    "Stable Diffusion",
    {"diffusers": r"(down|up|mid|input|output|middle)_blocks?_"},
)
JOINT = Family(
    "joint",
    "Flux, SD3 or Qwen-Image",
    {"diffusers": r"transformer_blocks_\d+_(attn|ff_context|norm1)_"},
)
# Black Forest Labs' names, which HunyuanVideo has too
BFL = Family(
    "bfl",
    "Flux",
    {"original": r"(double|single)_blocks_\d+_", "diffusers": r"single_transformer_blocks_\d+_"},
    settles=("joint",),
)
# with a cross-attention to the text
CROSS = Family(
    "cross",
    "LTX-Video or PixArt",
    {"diffusers": r"transformer_blocks_\d+_attn[12]_"},
)
LUMINA = Family(
    "lumina",
    "Lumina 2 or Z-Image",
    {
        "original": r"(layers|noise_refiner|context_refiner)_\d+_attention_(qkv|out$)",
        "diffusers": r"(layers|noise_refiner|context_refiner)_\d+_attention_to_",
    },
)
