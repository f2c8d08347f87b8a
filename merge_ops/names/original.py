"""Diffusers' names for the layers of models that ComfyUI keeps under their authors' names.

Only of the models, or parts of them, for which ComfyUI's own key maps have no diffusers names. The names on
the right are those of diffusers' module classes; tests compare them with diffusers' own converters.
"""

from __future__ import annotations

import re

# original layer -> its names in diffusers, several where it is fused
_Layers = dict[str, tuple[str, ...]]
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# the parts of a time, guidance or vector embedder
_MLP: _Layers = {
    "in_layer": ("linear_1",),
    "out_layer": ("linear_2",),
    "mlp.0": ("linear_1",),
    "mlp.2": ("linear_2",),
}
_WAN_ATTENTION: _Layers = {
    "q": ("to_q",), "k": ("to_k",), "v": ("to_v",), "o": ("to_out.0",),
    "k_img": ("add_k_proj",), "v_img": ("add_v_proj",),
}  # fmt: skip
_LUMINA_BLOCK: _Layers = {
    "attention.qkv": _QKV, "attention.out": ("attn.to_out.0",), "adaLN_modulation.1": ("norm1.linear",),
    "feed_forward.w1": ("feed_forward.linear_1",), "feed_forward.w2": ("feed_forward.linear_2",),
    "feed_forward.w3": ("feed_forward.linear_3",),
}  # fmt: skip

# image_model of ComfyUI's configuration -> (original block, diffusers' block, its layers); ``#`` is a number
_BLOCKS: dict[str, tuple[tuple[str, str, _Layers], ...]] = {
    "wan2.1": (
        ("blocks.#.self_attn.", "blocks.#.attn1.", _WAN_ATTENTION),
        ("blocks.#.cross_attn.", "blocks.#.attn2.", _WAN_ATTENTION),
        ("blocks.#.ffn.", "blocks.#.ffn.", {"0": ("net.0.proj",), "2": ("net.2",)}),
        ("text_embedding.", "condition_embedder.text_embedder.", {"0": ("linear_1",), "2": ("linear_2",)}),
        ("time_embedding.", "condition_embedder.time_embedder.", {"0": ("linear_1",), "2": ("linear_2",)}),
        ("", "condition_embedder.", {"time_projection.1": ("time_proj",)}),
        ("img_emb.proj.", "condition_embedder.image_embedder.ff.", {"1": ("net.0.proj",), "3": ("net.2",)}),
        ("", "", {"head.head": ("proj_out",)}),
    ),
    "hunyuan_video": (
        ("double_blocks.#.", "transformer_blocks.#.", {
            "img_attn.qkv": _QKV, "txt_attn.qkv": _ADDED_QKV,
            "img_attn.proj": ("attn.to_out.0",), "txt_attn.proj": ("attn.to_add_out",),
            "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",),
            "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
            "img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",),
        }),
        ("single_blocks.#.", "single_transformer_blocks.#.", {
            "linear1": (*_QKV, "proj_mlp"), "linear2": ("proj_out",), "modulation.lin": ("norm.linear",),
        }),
        ("txt_in.individual_token_refiner.blocks.#.", "context_embedder.token_refiner.refiner_blocks.#.", {
            "self_attn.qkv": _QKV, "self_attn.proj": ("attn.to_out.0",), "mlp.0": ("ff.net.0.proj",),
            "mlp.2": ("ff.net.2",), "adaLN_modulation.1": ("norm_out.linear",),
        }),
        ("txt_in.t_embedder.", "context_embedder.time_text_embed.timestep_embedder.", _MLP),
        ("txt_in.c_embedder.", "context_embedder.time_text_embed.text_embedder.", _MLP),
        ("time_in.", "time_text_embed.timestep_embedder.", _MLP),
        ("vector_in.", "time_text_embed.text_embedder.", _MLP),
        ("guidance_in.", "time_text_embed.guidance_embedder.", _MLP),
        ("", "", {
            "img_in.proj": ("x_embedder.proj",), "txt_in.input_embedder": ("context_embedder.proj_in",),
            "final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",),
        }),
    ),
    "lumina2": (
        ("layers.#.", "layers.#.", _LUMINA_BLOCK),
        ("noise_refiner.#.", "noise_refiner.#.", _LUMINA_BLOCK),
        ("context_refiner.#.", "context_refiner.#.", _LUMINA_BLOCK),
        ("t_embedder.", "time_caption_embed.timestep_embedder.", _MLP),
        ("cap_embedder.", "time_caption_embed.caption_embedder.", {"1": ("1",)}),
        ("", "", {
            "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
            "final_layer.linear": ("norm_out.linear_2",),
        }),
    ),
    "flux2": (
        ("time_in.", "time_guidance_embed.timestep_embedder.", _MLP),
        ("guidance_in.", "time_guidance_embed.guidance_embedder.", _MLP),
        ("double_stream_modulation_img.", "double_stream_modulation_img.", {"lin": ("linear",)}),
        ("double_stream_modulation_txt.", "double_stream_modulation_txt.", {"lin": ("linear",)}),
        ("single_stream_modulation.", "single_stream_modulation.", {"lin": ("linear",)}),
    ),
    "chroma": (
        ("distilled_guidance_layer.layers.#.", "distilled_guidance_layer.layers.#.", _MLP),
    ),
    "ltxv": (
        ("", "", {"patchify_proj": ("proj_in",)}),
        ("adaln_single.emb.timestep_embedder.", "time_embed.emb.timestep_embedder.", {
            "linear_1": ("linear_1",), "linear_2": ("linear_2",),
        }),
        ("adaln_single.", "time_embed.", {"linear": ("linear",)}),
    ),
}  # fmt: skip
# shift comes before scale in the original, and behind it in diffusers
_SWAPPED = {("hunyuan_video", "final_layer.adaLN_modulation.1")}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def diffusers_names(image_model: str, name: str) -> tuple[str, ...]:
    """Diffusers' names of an original layer, ``()`` if it has none here; several where it is fused."""
    for block, theirs, layers in _BLOCKS.get(image_model, ()):
        pattern = block.partition("#")
        found = _NUMBER.search(name) if pattern[1] else None
        if pattern[1] and found is None:
            continue
        head = block if found is None else block.replace("#", found[0])
        rest = name.removeprefix(head)
        if name.startswith(head) and rest in layers:
            number = found[0] if found else ""
            return tuple(theirs.replace("#", number) + layer for layer in layers[rest])
    return ()


def pieces(names: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """``(start, length)`` of the rows of each of so many diffusers layers in a fused weight.

    Queries are as wide as the model; keys and values share the rest evenly, where there are only these three
    (grouped queries), and are as wide as the queries, where an MLP follows.
    """
    rows, width = shape[0], shape[1]
    if names == 1:
        return [(0, rows)]
    lengths = [width, *[(rows - width) // 2] * 2] if names == 3 else [width, width, width, rows - 3 * width]
    starts = [sum(lengths[:i]) for i in range(names)]
    return list(zip(starts, lengths, strict=True))


def is_swapped(image_model: str, name: str) -> bool:
    """True where the two halves of the rows are the other way round in diffusers."""
    return (image_model, name) in _SWAPPED
