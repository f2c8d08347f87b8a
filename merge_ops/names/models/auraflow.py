"""AuraFlow."""

from __future__ import annotations

from ..architecture import Architecture, Evidence
from ..families import BFL
from .parts import EMBEDDER

# Flux has no output projection in its single blocks, and more of them
_OWN = r"^single_transformer_blocks_\d+_attn_to_out_0"
_FLUX = r"^(transformer_blocks_|single_transformer_blocks_(3[2-9]_|\d+_(proj_mlp|proj_out|norm_linear)))"


def _fits(evidence: Evidence) -> bool | None:
    """Only single blocks' queries, keys and values fit both models."""
    if evidence.has(r"^(double|single)_blocks_") or evidence.has(_FLUX):
        return False
    return True if evidence.has(_OWN) else None


AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    patterns={
        "original": r"(double|single)_layers_\d+_",
        "diffusers": r"joint_transformer_blocks_\d+_|single_transformer_blocks_\d+_(ff|norm1)_",
    },
    families={BFL: _fits},
    blocks={
        "double_layers": "double", "joint_transformer_blocks": "double",
        "single_layers": "single", "single_transformer_blocks": "single",
    },
    order=(
        "double_layers joint_transformer_blocks",
        "single_layers single_transformer_blocks",
        "modF final_linear norm_out proj_out",
    ),
    words={},
    converter=None,
    comfyui={
        "auraflow": (
            ("double_layers.#.", "joint_transformer_blocks.#.", {
                "attn.w2q": ("attn.to_q",), "attn.w2k": ("attn.to_k",), "attn.w2v": ("attn.to_v",),
                "attn.w2o": ("attn.to_out.0",), "attn.w1q": ("attn.add_q_proj",),
                "attn.w1k": ("attn.add_k_proj",), "attn.w1v": ("attn.add_v_proj",),
                "attn.w1o": ("attn.to_add_out",), "mlpX.c_fc1": ("ff.linear_1",),
                "mlpX.c_fc2": ("ff.linear_2",), "mlpX.c_proj": ("ff.out_projection",),
                "mlpC.c_fc1": ("ff_context.linear_1",), "mlpC.c_fc2": ("ff_context.linear_2",),
                "mlpC.c_proj": ("ff_context.out_projection",), "modX.1": ("norm1.linear",),
                "modC.1": ("norm1_context.linear",),
            }),
            ("single_layers.#.", "single_transformer_blocks.#.", {
                "attn.w1q": ("attn.to_q",), "attn.w1k": ("attn.to_k",), "attn.w1v": ("attn.to_v",),
                "attn.w1o": ("attn.to_out.0",), "mlp.c_fc1": ("ff.linear_1",), "mlp.c_fc2": ("ff.linear_2",),
                "mlp.c_proj": ("ff.out_projection",), "modCX.1": ("norm1.linear",),
            }),
            ("t_embedder.", "time_step_proj.", EMBEDDER),
            ("", "", {
                "cond_seq_linear": ("context_embedder",), "init_x_linear": ("pos_embed.proj",),
                "final_linear": ("proj_out",), "modF.1": ("norm_out.linear",),
            }),
        ),
    },
    checkpoint=("double_layers.", "joint_transformer_blocks."),
    lacks={
        "words": "no converter reads its original names",
        "converter": "diffusers has none for the original names",
    },
    swapped=("modF.1",),
    kohya="transformer.",
)  # fmt: skip
