"""Qwen-Image."""

from __future__ import annotations

from ..architecture import Architecture, Evidence
from ..families import JOINT

_MORE_BLOCKS_THAN = 37  # of 60; no other model with these names has as many
_MORE_THAN_FLUX = 18


def _fits(evidence: Evidence) -> bool | None:
    """True for more blocks than others have; attention alone does not tell the first of them from Flux's."""
    if evidence.last_block > _MORE_BLOCKS_THAN:
        return True
    if evidence.last_block > _MORE_THAN_FLUX or evidence.has(r"_(ff|ff_context|norm1|norm1_context)_"):
        return False
    return None


QWEN = Architecture(
    name="qwen",
    title="Qwen-Image",
    patterns={"diffusers": r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_"},
    families={JOINT: _fits},
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
    kohya="lora_unet_",
)
