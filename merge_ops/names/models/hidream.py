"""HiDream."""

from __future__ import annotations

from ..architecture import Architecture

HIDREAM = Architecture(
    name="hidream",
    title="HiDream",
    patterns={"diffusers": r"(double|single)_stream_blocks_\d+_"},
    families={},
    blocks={"double_stream_blocks": "double", "single_stream_blocks": "single"},
    order=("double_stream_blocks", "single_stream_blocks", "final_layer"),
    words={},
    converter=None,
    comfyui={},
    checkpoint=("double_stream_blocks.",),
    lacks={
        "words": "its original names are diffusers' names",
        "converter": "its original names are diffusers' names",
        "comfyui": "its original names are diffusers' names",
    },
    kohya="lora_unet_",
)
