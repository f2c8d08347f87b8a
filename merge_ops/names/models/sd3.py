"""SD3 and SD3.5."""

from __future__ import annotations

from ..architecture import Architecture
from ..families import JOINT
from .parts import ADDED_QKV, EMBEDDER, LAST_NORM, QKV

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
    comfyui={
        "sd3": (
            ("joint_blocks.#.x_block.", "transformer_blocks.#.", {
                "attn.qkv": QKV, "attn.proj": ("attn.to_out.0",),
                "attn.ln_q": ("attn.norm_q",), "attn.ln_k": ("attn.norm_k",),
                "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "attn2.proj": ("attn2.to_out.0",),
                "attn2.ln_q": ("attn2.norm_q",), "attn2.ln_k": ("attn2.norm_k",),
                "mlp.fc1": ("ff.net.0.proj",), "mlp.fc2": ("ff.net.2",),
                "adaLN_modulation.1": ("norm1.linear",),
            }),
            ("joint_blocks.#.context_block.", "transformer_blocks.#.", {
                "attn.qkv": ADDED_QKV, "attn.proj": ("attn.to_add_out",),
                "attn.ln_q": ("attn.norm_added_q",), "attn.ln_k": ("attn.norm_added_k",),
                "mlp.fc1": ("ff_context.net.0.proj",), "mlp.fc2": ("ff_context.net.2",),
                "adaLN_modulation.1": ("norm1_context.linear",),
            }),
            ("t_embedder.", "time_text_embed.timestep_embedder.", EMBEDDER),
            ("y_embedder.", "time_text_embed.text_embedder.", EMBEDDER),
            ("", "", {
                "x_embedder.proj": ("pos_embed.proj",), "context_embedder": ("context_embedder",),
                "final_layer.linear": ("proj_out",), LAST_NORM: ("norm_out.linear",),
            }),
        ),
    },
    checkpoint=("joint_blocks.", "transformer_blocks."),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
    },
    swapped=(LAST_NORM, "joint_blocks.#.context_block.adaLN_modulation.1"),
)  # fmt: skip
