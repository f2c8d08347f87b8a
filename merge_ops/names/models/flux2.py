"""Flux.2."""

from __future__ import annotations

from ..architecture import Architecture, Converter, Evidence
from ..families import BFL, JOINT
from .flux import WORDS
from .parts import DOUBLE, EMBEDDER, LAST_NORM

_WIDTH = 6144


def _has_gated_single_blocks(evidence: Evidence) -> bool:
    """In Flux.2, ``linear1`` makes q, k and v and both halves of a gated MLP: nine times its input."""
    return any(
        layer.matrix_shape[0] == 9 * layer.matrix_shape[1]
        for name, layer in evidence.layers.items()
        if name.endswith("linear1")
    )


FLUX2 = Architecture(
    name="flux2",
    title="Flux.2",
    patterns={
        "original": r"double_stream_modulation|single_stream_modulation",
        "diffusers": r"single_transformer_blocks_\d+_attn_(to_qkv_mlp_proj|to_out$)"
        r"|transformer_blocks_\d+_ff_(context_)?linear_",
    },
    families={BFL: _has_gated_single_blocks, JOINT: lambda evidence: evidence.attention_width == _WIDTH},
    blocks={
        "double_blocks": "double", "transformer_blocks": "double",
        "single_blocks": "single", "single_transformer_blocks": "single",
    },
    order=(
        "double_blocks transformer_blocks",
        "single_blocks single_transformer_blocks",
        "final_layer norm_out proj_out",
    ),
    words={
        "diffusion_model": f"{WORDS} double_stream_modulation_img double_stream_modulation_txt "
        "single_stream_modulation"
    },
    converter=Converter("Flux2Pipeline", "dotted"),
    comfyui={
        "flux2": (
            ("double_blocks.#.", "transformer_blocks.#.", {
                **DOUBLE,
                "img_mlp.0": ("ff.linear_in",), "img_mlp.2": ("ff.linear_out",),
                "txt_mlp.0": ("ff_context.linear_in",), "txt_mlp.2": ("ff_context.linear_out",),
            }),
            ("single_blocks.#.", "single_transformer_blocks.#.", {
                "linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",),
                "norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",),
            }),
            ("time_in.", "time_guidance_embed.timestep_embedder.", EMBEDDER),
            ("guidance_in.", "time_guidance_embed.guidance_embedder.", EMBEDDER),
            ("double_stream_modulation_img.", "double_stream_modulation_img.", {"lin": ("linear",)}),
            ("double_stream_modulation_txt.", "double_stream_modulation_txt.", {"lin": ("linear",)}),
            ("single_stream_modulation.", "single_stream_modulation.", {"lin": ("linear",)}),
            ("", "", {
                "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
                "final_layer.linear": ("proj_out",), LAST_NORM: ("norm_out.linear",),
            }),
        ),
    },
    checkpoint=("double_blocks.", "transformer_blocks."),
    lacks={},
    swapped=(LAST_NORM,),
)  # fmt: skip
