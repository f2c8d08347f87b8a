"""LTX-Video."""

from __future__ import annotations

from ..architecture import Architecture, Evidence
from ..families import CROSS

_WIDTHS = (2048, 4096)  # 2B and 13B
_SMALLEST = 512  # of any published model; what is smaller was made up for a test


def _fits(evidence: Evidence) -> bool:
    """False for CogVideoX, Mochi, Sana and others with these names, which differ in width."""
    return evidence.attention_width in _WIDTHS or evidence.attention_width < _SMALLEST


LTX = Architecture(
    name="ltx",
    title="LTX-Video",
    patterns={},
    families={CROSS: _fits},
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
