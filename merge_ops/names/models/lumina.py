"""Lumina Image 2 and Z-Image, which ComfyUI runs as one model of two sizes."""

from __future__ import annotations

from functools import partial

from ..architecture import Architecture, Converter, LayerNames, LayerTable
from ..families import LUMINA
from .parts import EMBEDDER, QKV

_WIDTH = 2304  # of Lumina 2
_BLOCK: LayerNames = {
    "attention.qkv": QKV, "attention.out": ("attn.to_out.0",), "adaLN_modulation.1": ("norm1.linear",),
    "feed_forward.w1": ("feed_forward.linear_1",), "feed_forward.w2": ("feed_forward.linear_2",),
    "feed_forward.w3": ("feed_forward.linear_3",),
}  # fmt: skip

_ZIMAGE_BLOCK: LayerNames = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    "attention.q_norm": ("attention.norm_q",), "attention.k_norm": ("attention.norm_k",),
}  # fmt: skip
_LUMINA2: LayerTable = (
    ("layers.#.", "layers.#.", _BLOCK),
    ("noise_refiner.#.", "noise_refiner.#.", _BLOCK),
    ("context_refiner.#.", "context_refiner.#.", _BLOCK),
    ("t_embedder.", "time_caption_embed.timestep_embedder.", EMBEDDER),
    ("cap_embedder.", "time_caption_embed.caption_embedder.", {"1": ("1",)}),
    ("", "", {
        "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
        "final_layer.linear": ("norm_out.linear_2",),
    }),
)  # fmt: skip
_ZIMAGE: LayerTable = (
    ("layers.#.", "layers.#.", _ZIMAGE_BLOCK),
    ("noise_refiner.#.", "noise_refiner.#.", _ZIMAGE_BLOCK),
    ("context_refiner.#.", "context_refiner.#.", _ZIMAGE_BLOCK),
    ("", "", {
        "x_embedder": ("all_x_embedder.2-1",), "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    }),
)  # fmt: skip

_row = partial(
    Architecture,
    blocks={"layers": "blocks"},
    words={
        "diffusion_model": "layers noise_refiner context_refiner attention qkv out feed_forward w1 w2 w3 mlp "
        "adaLN_modulation x_embedder t_embedder cap_embedder final_layer linear"
    },
    checkpoint=("noise_refiner.",),
)
LUMINA2 = _row(
    name="lumina2",
    title="Lumina 2",
    patterns={
        "diffusers": r"(layers|noise_refiner|context_refiner)_\d+_(attn_to_|feed_forward_linear_)",
    },
    families={LUMINA: lambda evidence: _WIDTH in evidence.input_widths("_attention_")},
    order=("noise_refiner context_refiner", "layers", "final_layer norm_out"),
    converter=Converter("Lumina2Pipeline", "dotted"),
    comfyui={"lumina2": _LUMINA2},
    lacks={},
)
ZIMAGE = _row(
    name="zimage",
    title="Z-Image",
    patterns={},
    families={LUMINA: None},
    order=("noise_refiner context_refiner", "layers", "final_layer all_final_layer"),
    converter=Converter("ZImagePipeline", "kohya"),
    comfyui={"lumina2": _LUMINA2, "zimage": _ZIMAGE},
    lacks={"patterns": "the family has all its names"},
    kohya="diffusion_model.",
)
