"""HiDream."""

from __future__ import annotations

from ..architecture import Architecture

HIDREAM = Architecture(
    name="hidream",
    title="HiDream",
    patterns={"diffusers": r"(double|single)_stream_blocks_\d+_"},
    families={},
    blocks={"double_stream_blocks": "double", "single_stream_blocks": "single"},
    order=("final_layer",),
    words={},
    converter=None,
    comfyui={},
    checkpoint=(),
    lacks={
        "words": "its original names are diffusers' names",
        "converter": "its original names are diffusers' names",
        "comfyui": "its original names are diffusers' names",
    },
)
