"""AuraFlow."""

from __future__ import annotations

from ..architecture import Architecture

AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    patterns={
        "original": r"(double|single)_layers_\d+_",
        "diffusers": r"joint_transformer_blocks_\d+_|single_transformer_blocks_\d+_(ff|norm1)_",
    },
    families={},
    blocks={
        "double_layers": "double", "joint_transformer_blocks": "double",
        "single_layers": "single", "single_transformer_blocks": "single",
    },
    order=(),
    words={},
    converter=None,
    comfyui={},
    checkpoint=(),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
        "comfyui": "ComfyUI's own map has diffusers' names of all its layers",
    },
)  # fmt: skip
