"""Presets by name, and the vectors of values that A1111's sd-webui-lora-block-weight reads.

A vector has one value for the text encoder (BASE) and one for each block that such a LoRA has, as LDM numbers
them: 17 and 26 values are for SD1 and SD2, 12 and 20 for SDXL. As in A1111, blocks that a vector does not
list get 0, and layers outside all blocks (time embedding, last convolution) keep 1.
"""

from __future__ import annotations

_INS = tuple(f"in{i}" for i in range(12))
_OUTS = tuple(f"out{i}" for i in range(12))
EVERY_BLOCK = (*_INS, "mid", *_OUTS)
VECTORS: dict[int, tuple[str, ...]] = {
    12: ("te", "in4", "in5", "in7", "in8", "mid", *_OUTS[:6]),
    17: ("te", "in1", "in2", "in4", "in5", "in7", "in8", "mid", *_OUTS[3:]),
    20: ("te", *_INS[:9], "mid", *_OUTS[:9]),
    26: ("te", *EVERY_BLOCK),
}

# A1111's presets are vectors of 17 values, and these agree with them on the blocks that those list. Blocks
# that the 17 do not list, which SDXL and convolutions have, go with their neighbours instead of getting 0.
PRESETS: dict[str, str] = {
    "NONE": "rest:0",
    "ALL": "rest:1",
    "ALL0.5": "rest:0.5",
    "INS": "rest:0 te:1 in0-4:1",
    "IND": "rest:0 te:1 in5-11:1",
    "INALL": "rest:0 te:1 in0-11:1",
    "MIDD": "rest:0 te:1 in5-11:1 mid:1 out0-6:1",
    "OUTD": "rest:0 te:1 out0-6:1",
    "OUTS": "rest:0 te:1 out7-11:1",
    "OUTALL": "rest:0 te:1 out0-11:1",
    "BASE": "rest:0 te:1",
    "MID": "rest:0 mid:1",
    **{f"IN{i:02}": f"rest:0 in{i}:1" for i in range(12)},
    **{f"OUT{i:02}": f"rest:0 out{i}:1" for i in range(12)},
    "CONTENT": "rest:0 out0:1",  # for SDXL: B-LoRA, arXiv:2403.14572
    "STYLE": "rest:0 out1:1",
}


def expand_vector(values: list[str]) -> str:
    """Write the terms that a vector stands for; it has as many values as one of ``VECTORS``."""
    named = dict(zip(VECTORS[len(values)], values, strict=True))
    return " ".join(f"{block}:{named.get(block, '0')}" for block in ("te", *EVERY_BLOCK))
