"""PixArt Alpha and Sigma."""

from __future__ import annotations

from ..architecture import Architecture
from ..families import CROSS
from .parts import EMBEDDER

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
    comfyui={
        "pixart_sigma": (
            ("blocks.#.", "transformer_blocks.#.", {
                "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.proj": ("attn1.to_out.0",),
                "cross_attn.q_linear": ("attn2.to_q",), "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
                "cross_attn.proj": ("attn2.to_out.0",),
                "mlp.fc1": ("ff.net.0.proj",), "mlp.fc2": ("ff.net.2",),
            }),
            ("t_embedder.", "adaln_single.emb.timestep_embedder.", EMBEDDER),
            ("csize_embedder.", "adaln_single.emb.resolution_embedder.", EMBEDDER),
            ("ar_embedder.", "adaln_single.emb.aspect_ratio_embedder.", EMBEDDER),
            ("y_embedder.y_proj.", "caption_projection.", {"fc1": ("linear_1",), "fc2": ("linear_2",)}),
            ("", "", {
                "t_block.1": ("adaln_single.linear",), "x_embedder.proj": ("pos_embed.proj",),
                "final_layer.linear": ("proj_out",),
            }),
        ),
    },
    checkpoint=("blocks.", "transformer_blocks."),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
    },
    kohya="transformer.",
)  # fmt: skip
