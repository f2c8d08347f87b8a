"""The UNet of SD1, SD2 and SDXL: its original (LDM, SGM) names and those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

# first words of paths
DIFFUSERS_HEADS = (
    "down_blocks", "up_blocks", "mid_block", "conv_in", "conv_out", "time_embedding", "add_embedding",
)  # fmt: skip
LDM_HEADS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def _make_blocks(counts: Sequence[int]) -> dict[str, str]:
    """LDM's names of blocks to diffusers'; ``counts`` has the residual blocks of each level."""
    table = {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        table[f"middle_block.{i}"] = f"mid_block.{name}"
    for i in (0, 2):
        table[f"time_embed.{i}"] = f"time_embedding.linear_{i // 2 + 1}"
        table[f"label_emb.0.{i}"] = f"add_embedding.linear_{i // 2 + 1}"
    first = 1
    for level, count in enumerate(counts):
        for i in range(count):
            table[f"input_blocks.{first + i}.0"] = f"down_blocks.{level}.resnets.{i}"
            table[f"input_blocks.{first + i}.1"] = f"down_blocks.{level}.attentions.{i}"
        table[f"input_blocks.{first + count}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        first += count + 1
    first = 0
    for level, count in enumerate(reversed(counts)):
        for i in range(count + 1):
            table[f"output_blocks.{first + i}.0"] = f"up_blocks.{level}.resnets.{i}"
            table[f"output_blocks.{first + i}.1"] = f"up_blocks.{level}.attentions.{i}"
        # after an attention the upsampler is module 2; where a level has no attention it is module 1
        table[f"output_blocks.{first + count}.1.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        table[f"output_blocks.{first + count}.2.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        first += count + 1
    return table


_DOWNSAMPLER = re.compile(r"input_blocks\.(\d+)\.0\.op")
_INPUT = re.compile(r"input_blocks\.(\d+)\.")
_TO_DIFFUSERS = _make_blocks((2, 2, 2, 2))
_TO_LDM = {diffusers: ldm for ldm, diffusers in _TO_DIFFUSERS.items()}
_RESNET_TO_LDM = {diffusers: ldm for ldm, diffusers in _RESNET.items()}


def to_ldm(path: str) -> str:
    """Return the LDM name of a module of a diffusers UNet; the path itself if there is none."""
    parts = path.split(".")
    for length in (5, 4, 3, 2, 1):
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if len(parts) >= length and head in _TO_LDM:
            rest = _RESNET_TO_LDM.get(rest, rest) if "resnets" in head else rest
            return ".".join(filter(None, (_TO_LDM[head], rest)))
    return path


def blocks_of(paths: Collection[str]) -> Mapping[str, str]:
    """Return LDM's names of blocks to diffusers' for the UNet that has these modules, by their LDM names.

    Small relatives of SDXL have one residual block per level instead of two.
    """
    ends = sorted({int(match[1]) for path in paths if (match := _DOWNSAMPLER.match(path))})
    last = max((int(match[1]) for path in paths if (match := _INPUT.match(path))), default=0)
    starts = [0, *ends, last + 1]
    return _make_blocks([end - start - 1 for start, end in pairwise(starts)])


def from_ldm(path: str, blocks: Mapping[str, str] = _TO_DIFFUSERS) -> str:
    """Return diffusers' name of a module of the LDM UNet; the path itself if it is not one."""
    parts = path.split(".")
    for length in (4, 3, 2):
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if len(parts) >= length and head in blocks:
            return ".".join(filter(None, (blocks[head], _RESNET.get(rest, rest))))
    return path
