"""Layers that several models have, by their original names."""

from __future__ import annotations

from ..architecture import LayerNames, LayerTable

# of a time, guidance or vector embedder
EMBEDDER: LayerNames = {
    "in_layer": ("linear_1",),
    "out_layer": ("linear_2",),
    "mlp.0": ("linear_1",),
    "mlp.2": ("linear_2",),
}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# of the blocks with two streams and with one, in Black Forest Labs' names
DOUBLE: LayerNames = {
    "img_attn.qkv": QKV, "txt_attn.qkv": ADDED_QKV,
    "img_attn.proj": ("attn.to_out.0",), "txt_attn.proj": ("attn.to_add_out",),
    "img_attn.norm.query_norm": ("attn.norm_q",), "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",), "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
}  # fmt: skip
SINGLE: LayerNames = {
    "linear1": (*QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",), "norm.key_norm": ("attn.norm_k",),
}  # fmt: skip
BLOCKS: LayerTable = (
    ("double_blocks.#.", "transformer_blocks.#.", DOUBLE),
    ("single_blocks.#.", "single_transformer_blocks.#.", SINGLE),
)
# shift, then scale, in the authors' models; diffusers has scale first
LAST_NORM = "final_layer.adaLN_modulation.1"
