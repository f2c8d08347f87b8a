"""LTX-Video."""

from __future__ import annotations

from ..architecture import Architecture
from ..families import CROSS

LTX = Architecture(
    name="ltx",
    title="LTX-Video",
    patterns={},
    families={CROSS: None},
    blocks={"transformer_blocks": "blocks"},
    order=("transformer_blocks", "proj_out"),
    words={},
    converter=None,
    comfyui={
        "ltxv": (
            ("", "", {"patchify_proj": ("proj_in",)}),
            ("adaln_single.emb.timestep_embedder.", "time_embed.emb.timestep_embedder.", {
                "linear_1": ("linear_1",), "linear_2": ("linear_2",),
            }),
            ("adaln_single.", "time_embed.", {"linear": ("linear",)}),
        ),
    },
    checkpoint=("transformer_blocks.",),
    lacks={
        "patterns": "the family has all its names",
        "words": "the original names of its blocks are diffusers' names",
        "converter": "the original names of its blocks are diffusers' names",
    },
    component="diffusion_model",
    kohya="lora_unet_",
)  # fmt: skip
