"""AuraFlow."""

from __future__ import annotations

from ..architecture import Architecture, Evidence
from ..families import BFL

# Flux has no output projection in its single blocks, and more of them
_OWN = r"^single_transformer_blocks_\d+_attn_to_out_0"
_FLUX = r"^(transformer_blocks_|single_transformer_blocks_(3[2-9]_|\d+_(proj_mlp|proj_out|norm_linear)))"


def _fits(evidence: Evidence) -> bool | None:
    """Only single blocks' queries, keys and values fit both models."""
    if evidence.has(r"^(double|single)_blocks_") or evidence.has(_FLUX):
        return False
    return True if evidence.has(_OWN) else None


AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    patterns={
        "original": r"(double|single)_layers_\d+_",
        "diffusers": r"joint_transformer_blocks_\d+_|single_transformer_blocks_\d+_(ff|norm1)_",
    },
    families={BFL: _fits},
    blocks={
        "double_layers": "double", "joint_transformer_blocks": "double",
        "single_layers": "single", "single_transformer_blocks": "single",
    },
    order=(
        "double_layers joint_transformer_blocks",
        "single_layers single_transformer_blocks",
        "modF final_linear norm_out proj_out",
    ),
    words={},
    converter=None,
    comfyui={},
    checkpoint=("double_layers.", "joint_transformer_blocks."),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
        "comfyui": "ComfyUI's own map has diffusers' names of all its layers",
    },
    kohya="transformer.",
)  # fmt: skip
