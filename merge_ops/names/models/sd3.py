"""SD3 and SD3.5."""

from __future__ import annotations

from ..architecture import Architecture
from ..families import JOINT

_WIDTHS = (1536, 2432)  # Medium and Large

SD3 = Architecture(
    name="sd3",
    title="SD3",
    patterns={"original": r"joint_blocks_\d+_"},
    families={JOINT: lambda evidence: evidence.attention_width in _WIDTHS},
    blocks={"joint_blocks": "double", "transformer_blocks": "double"},
    order=("joint_blocks transformer_blocks", "final_layer norm_out proj_out"),
    words={},
    converter=None,
    comfyui={},
    checkpoint=("joint_blocks.", "transformer_blocks."),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
        "comfyui": "ComfyUI's own map has diffusers' names of all its layers",
    },
)
