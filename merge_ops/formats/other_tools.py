"""Files that other tools write for their own use: each is named by its keys, with the way out."""

from __future__ import annotations

from collections.abc import Collection

MLX = (
    "this is an adapter of MLX (lora_a, lora_b), whose factors are transposed and whose scale is in "
    "adapter_config.json; fuse it into the model with mlx_lm.fuse, or write it as a PEFT folder: lora_A is "
    "lora_a transposed, lora_B is lora_b transposed, and lora_alpha is the scale times the rank"
)
TORCHTUNE = (
    "this is an adapter of torchtune (lora_a.weight, lora_b.weight), with names of its own; have torchtune "
    "write the adapter for PEFT, which is adapter_model.safetensors beside adapter_config.json, and give "
    "that folder"
)
_NUNCHAKU = (
    "this is a LoRA of Nunchaku (SVDQuant), which was converted for its quantised layers; use the file that "
    "it was converted from"
)
_QUANTISED = (
    "the file holds quantised weights (of Nunchaku, AWQ or GPTQ); quantised adapters are not supported, so "
    "use the LoRA that was merged into them"
)
_NEMO = (
    "this is an adapter of NeMo or Megatron, whose layers are fused under names of their own; export it to "
    "PEFT with NeMo's scripts"
)
_OTHER_PEFT = (
    "this is a PEFT adapter of the kind {}, which cannot be merged; merge it into its base model with PEFT "
    "(merge_and_unload), and extract a LoRA from that"
)
BUNDLE = "a textual-inversion embedding that is bundled with the LoRA; save it as a file of its own to use it"
_EMBEDDINGS = frozenset({"emb_params", "clip_l", "clip_g", "clip_h", "t5xxl"})
# by far the most keys, which belong to no other tool
_PLAIN = (".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale")

# what the tool is, by what its keys end in, begin with or contain
_ENDS = {
    (".lora_a.weight", ".lora_b.weight"): TORCHTUNE,
    (".lora_a", ".lora_b"): MLX,
    (".lora_down", ".lora_up", ".proj_down", ".proj_up"): _NUNCHAKU,
    (".wscales", ".qweight"): _QUANTISED,
    (".adapter.linear_in.weight", ".adapter.linear_out.weight", "_adapter.linear_in.weight"): _NEMO,
}
_STARTS = {
    ("image_proj.", "ip_adapter."): "this is an IP-Adapter, not a LoRA; load it with IP-Adapter's loader",
    ("lllite_",): "this is a ControlNet-LLLite, a control model; load it with a node for ControlNet-LLLite",
    ("control_model.", "controlnet_cond_embedding.", "controlnet_blocks.", "input_hint_block."): "this is a "
    "ControlNet, not a LoRA; load it as a ControlNet",
    ("id_encoder.",): "this is a PhotoMaker, of which a LoRA is a part; load it with a node for PhotoMaker",
    ("redux_up.", "redux_down."): "this is a Redux, a style model, not a LoRA; load it as a style model",
}  # fmt: skip
_PARTS = {
    (".vera_lambda_", "base_model.vera_A"): "VeRA",
    (".randlora_lambda", "base_model.randlora_A"): "RandLoRA",
    (".fourierft_spectrum",): "FourierFT",
    (".hra_u",): "HRA",
    (".vblora_logits", ".vblora_vector_bank"): "VB-LoRA",
    (".c3a_kernel",): "C3A",
    (".miss_block", ".bone_"): "MiSS (Bone)",
    (".shira_weight",): "SHiRA",
    (".delora_lambda",): "DeLoRA",
    ("prompt_embeddings",): "prompt tuning",
    (".lora_latent_mapping",): "LoRA-XS",
}


def named_tool(keys: Collection[str]) -> str | None:
    """Return what a file with these keys is, and the way out; None if it is nothing that is known here."""
    special = [key for key in keys if not key.endswith(_PLAIN)]
    for ends, what in _ENDS.items():
        if any(key.endswith(ends) for key in special):
            return what
    for starts, what in _STARTS.items():
        if any(key.startswith(starts) for key in special):
            return what
    if keys and len(special) == len(keys) and all(key in _EMBEDDINGS or is_bundled(key) for key in keys):
        return "this is a textual-inversion embedding, not a LoRA; put it into the embeddings folder"
    if any(".motion_modules." in key for key in special) and not any("lora" in key for key in keys):
        return "this is a motion module of AnimateDiff, not a LoRA; load it with a node for AnimateDiff"
    for parts, kind in _PARTS.items():
        if any(part in key for key in special for part in parts):
            return _OTHER_PEFT.format(kind)
    return None


def is_bundled(key: str) -> bool:
    """Return whether a key belongs to an embedding that a trainer put into the LoRA's file."""
    return key.startswith("bundle_emb.")
