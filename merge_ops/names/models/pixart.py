"""PixArt Alpha and Sigma."""

from __future__ import annotations

from ..architecture import Architecture
from ..families import CROSS

_WIDTH = 1152

PIXART = Architecture(
    name="pixart",
    title="PixArt",
    patterns={"original": r"blocks_\d+_(cross_attn_(kv_linear|q_linear|proj)|attn_(qkv|proj)|mlp)"},
    families={CROSS: lambda evidence: evidence.attention_width == _WIDTH},
    blocks={"blocks": "blocks", "transformer_blocks": "blocks"},
    order=("blocks transformer_blocks", "final_layer proj_out"),
    words={},
    converter=None,
    comfyui={},
    checkpoint=("blocks.", "transformer_blocks."),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
        "comfyui": "ComfyUI's own map has diffusers' names of all its layers",
    },
    kohya="transformer.",
)
