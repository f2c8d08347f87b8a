"""Flux.1, with Chroma, which names its layers alike."""

from __future__ import annotations

from ..architecture import Architecture, Converter, Evidence
from ..families import BFL, JOINT
from .parts import BLOCKS, EMBEDDER, LAST_NORM

WORDS = """double_blocks single_blocks img_attn txt_attn img_mlp txt_mlp img_mod txt_mod modulation qkv proj
lin linear1 linear2 img_in txt_in time_in guidance_in vector_in in_layer out_layer final_layer linear
adaLN_modulation"""

_LAST_BLOCK = 18  # with two streams


def _fits(evidence: Evidence) -> bool | None:
    """False for more blocks than it has, as Krea 2 has; otherwise nothing tells it from Qwen-Image."""
    return False if evidence.last_block > _LAST_BLOCK else None


FLUX = Architecture(
    name="flux",
    title="Flux",
    patterns={},
    families={BFL: None, JOINT: _fits},
    blocks={
        "double_blocks": "double", "transformer_blocks": "double",
        "single_blocks": "single", "single_transformer_blocks": "single",
    },
    order=(
        "double_blocks transformer_blocks",
        "single_blocks single_transformer_blocks",
        "final_layer norm_out proj_out",
    ),
    words={"diffusion_model": WORDS},
    converter=Converter("FluxPipeline", "kohya"),
    comfyui={
        "flux": (
            *BLOCKS,
            ("time_in.", "time_text_embed.timestep_embedder.", EMBEDDER),
            ("vector_in.", "time_text_embed.text_embedder.", EMBEDDER),
            ("guidance_in.", "time_text_embed.guidance_embedder.", EMBEDDER),
            ("", "", {
                "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
                "final_layer.linear": ("proj_out",), LAST_NORM: ("norm_out.linear",),
            }),
        ),
        "chroma": (
            *BLOCKS,
            ("distilled_guidance_layer.layers.#.", "distilled_guidance_layer.layers.#.", EMBEDDER),
            ("", "", {
                "img_in": ("x_embedder",), "txt_in": ("context_embedder",),
                "final_layer.linear": ("proj_out",),
            }),
        ),
    },
    checkpoint=("double_blocks.", "transformer_blocks."),
    lacks={"patterns": "the families have all its names"},
    swapped=(LAST_NORM,),
    processors={
        "double_blocks": {
            "qkv_lora1": "img_attn.qkv",
            "qkv_lora2": "txt_attn.qkv",
            "proj_lora1": "img_attn.proj",
            "proj_lora2": "txt_attn.proj",
        },
        "single_blocks": {"qkv_lora": "linear1_qkv", "proj_lora": "linear2"},
    },
)  # fmt: skip
