"""SD1.x, SD2.x and SDXL: one UNet, told apart by the width of their text encoders' output."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..architecture import Architecture, Evidence
from ..families import UNET

# of diffusers' UNet, then of the original one
_WORDS = """down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks
attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_shortcut conv_in conv_out
conv_norm_out time_emb_proj time_embedding add_embedding class_embedding linear_1 linear_2 norm norm1 norm2
norm3 to_k_ip to_v_ip input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection
op time_embed label_emb out"""


def _reads_text(width: int) -> Callable[[Evidence], bool]:
    """Make the check that the cross-attention reads text of a width."""
    return lambda evidence: width in evidence.input_widths("attn2_to_[kv]$")


_row = partial(
    Architecture,
    patterns={},
    blocks={},
    order=("down_blocks", "mid_block", "up_blocks", "conv_norm_out conv_out"),
    words={"unet": _WORDS},
    converter=None,
    comfyui={},
    checkpoint=(
        "first_stage_model.",
        "cond_stage_model.",
        "conditioner.embedders.",
        "input_blocks.",
        "down_blocks.",
    ),
    lacks={
        "blocks": "a UNet has levels instead of a sequence of blocks",
        "converter": "original names are brought to diffusers' names when a file is read",
        "comfyui": "ComfyUI's own map has diffusers' names of the UNet",
    },
    component="unet",
    kohya="lora_unet_",
)
SD1 = _row(name="sd1", title="SD1.x", families={UNET: _reads_text(768)})
SD2 = _row(name="sd2", title="SD2.x", families={UNET: _reads_text(1024)})
SDXL = _row(name="sdxl", title="SDXL", families={UNET: _reads_text(2048)})
