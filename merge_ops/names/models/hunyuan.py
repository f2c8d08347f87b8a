"""HunyuanVideo."""

from __future__ import annotations

from ..architecture import Architecture, Converter, Evidence
from ..families import BFL
from .flux import WORDS
from .parts import BLOCKS, EMBEDDER, LAST_NORM, QKV

_REFINER = "txt_in.individual_token_refiner.blocks.#."
# one more double block and two more single blocks than Flux
_DEEPER = r"^((double|transformer)_blocks_19|single_(transformer_)?blocks_3[89])_"


def _fits(evidence: Evidence) -> bool:
    """True for Tencent's own names, for a refiner of the text, and for more blocks than Flux has."""
    tencent = any(".img_attn_" in name or ".txt_attn_" in name for name in evidence.names)
    return tencent or evidence.has("token_refiner") or evidence.has(_DEEPER)


HUNYUAN = Architecture(
    name="hunyuan",
    title="HunyuanVideo",
    patterns={},
    families={BFL: _fits},
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
        "diffusion_model": f"{WORDS} blocks individual_token_refiner self_attn t_embedder c_embedder "
        "input_embedder mlp fc1 fc2"
    },
    # ComfyUI's names of these layers differ from Tencent's, which the converter reads
    converter=Converter("HunyuanVideoPipeline", "dotted", (
        (r"_attn\.(qkv|proj)(?=\.|$)", r"_attn_\1"),
        (r"(_mod|\.modulation)\.lin(?=\.|$)", r"\1.linear"),
        (r"_mlp\.0(?=\.|$)", "_mlp.fc1"),
        (r"_mlp\.2(?=\.|$)", "_mlp.fc2"),
    )),
    comfyui={
        "hunyuan_video": (
            *BLOCKS,
            (_REFINER, "context_embedder.token_refiner.refiner_blocks.#.", {
                "self_attn.qkv": QKV, "self_attn.proj": ("attn.to_out.0",), "mlp.0": ("ff.net.0.proj",),
                "mlp.2": ("ff.net.2",), "adaLN_modulation.1": ("norm_out.linear",),
            }),
            ("txt_in.t_embedder.", "context_embedder.time_text_embed.timestep_embedder.", EMBEDDER),
            ("txt_in.c_embedder.", "context_embedder.time_text_embed.text_embedder.", EMBEDDER),
            ("time_in.", "time_text_embed.timestep_embedder.", EMBEDDER),
            ("vector_in.", "time_text_embed.text_embedder.", EMBEDDER),
            ("guidance_in.", "time_text_embed.guidance_embedder.", EMBEDDER),
            ("", "", {
                "img_in.proj": ("x_embedder.proj",), "txt_in.input_embedder": ("context_embedder.proj_in",),
                "final_layer.linear": ("proj_out",), LAST_NORM: ("norm_out.linear",),
            }),
        ),
    },
    checkpoint=("double_blocks.", "transformer_blocks."),
    lacks={"patterns": "the family has all its names"},
    # Tencent's names, and the trainers' who took them over, brought to ComfyUI's
    aliases=(
        (r"((?:double_blocks|txt_in)\..*_attn)_(qkv|proj)", r"\1.\2"),
        (r"((?:double|single)_blocks[._].*(?:_mod|modulation)[._])linear", r"\1lin"),
        (r"((?:double_blocks|txt_in|time_in|vector_in|guidance_in)[._].*mlp[._])fc1", r"\g<1>0"),
        (r"((?:double_blocks|txt_in|time_in|vector_in|guidance_in)[._].*mlp[._])fc2", r"\g<1>2"),
    ),
    swapped=(LAST_NORM,),
)  # fmt: skip
