"""Qwen-Image."""

from __future__ import annotations

from ..architecture import Architecture
from ..families import JOINT

_MORE_BLOCKS_THAN = 37  # of 60; no other model with these names has as many

QWEN = Architecture(
    name="qwen",
    title="Qwen-Image",
    patterns={"diffusers": r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_"},
    families={JOINT: lambda evidence: evidence.last_block > _MORE_BLOCKS_THAN},
    blocks={"transformer_blocks": "double"},
    order=("transformer_blocks", "norm_out proj_out"),
    words={},
    converter=None,
    comfyui={},
    checkpoint=("transformer_blocks.",),
    lacks={
        "words": "its original names are diffusers' names",
        "converter": "its original names are diffusers' names",
        "comfyui": "its original names are diffusers' names",
    },
)
