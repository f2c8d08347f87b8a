"""Wan 2.1 and 2.2."""

from __future__ import annotations

from ..architecture import Architecture, Converter, LayerNames

_ATTENTION: LayerNames = {
    "q": ("to_q",), "k": ("to_k",), "v": ("to_v",), "o": ("to_out.0",),
    "k_img": ("add_k_proj",), "v_img": ("add_v_proj",),
}  # fmt: skip
_EMBEDDER: LayerNames = {"0": ("linear_1",), "2": ("linear_2",)}

WAN = Architecture(
    name="wan",
    title="Wan",
    patterns={
        # not "q_proj" and "output_proj", as in Cosmos and Anima
        "original": r"blocks_\d+_((self|cross)_attn_([qkvo]|[kv]_img|norm_\w+)(_bias)?$|ffn_\d+(_bias)?$)",
        "diffusers": r"blocks_\d+_(attn[12]|ffn_net)_",
    },
    families={},
    blocks={"blocks": "blocks"},
    order=("blocks", "head proj_out"),
    words={
        "diffusion_model": "blocks self_attn cross_attn ffn k_img v_img q k v o text_embedding "
        "time_embedding time_projection head img_emb proj"
    },
    converter=Converter("WanPipeline", "dotted"),
    comfyui={
        "wan2.1": (
            ("blocks.#.self_attn.", "blocks.#.attn1.", _ATTENTION),
            ("blocks.#.cross_attn.", "blocks.#.attn2.", _ATTENTION),
            ("blocks.#.ffn.", "blocks.#.ffn.", {"0": ("net.0.proj",), "2": ("net.2",)}),
            ("text_embedding.", "condition_embedder.text_embedder.", _EMBEDDER),
            ("time_embedding.", "condition_embedder.time_embedder.", _EMBEDDER),
            ("", "condition_embedder.", {"time_projection.1": ("time_proj",)}),
            ("img_emb.proj.", "condition_embedder.image_embedder.ff.", {
                "1": ("net.0.proj",), "3": ("net.2",),
            }),
            ("", "", {"head.head": ("proj_out",)}),
        ),
    },
    checkpoint=("blocks.",),
    lacks={},
    experts="Wan 2.2",
)  # fmt: skip
