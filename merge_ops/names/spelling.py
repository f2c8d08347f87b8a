"""Layer names: every spelling of a layer leads to one canonical name, and back to the spelling of a writer.

Canonical is diffusers' module path with its component before it, for example
``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`` or
``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``. Paths of other models are kept as they are.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

KOHYA_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
    "lycoris_": "unet",
}
DOTTED_COMPONENTS = (
    "unet",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoders",
    "transformer",
    "diffusion_model",
)

_UNET_WORDS = """down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks
attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 conv2 conv_shortcut conv_in conv_out
conv_norm_out time_emb_proj time_embedding add_embedding class_embedding linear_1 linear_2 norm norm1 norm2
norm3 to_k_ip to_v_ip input_blocks middle_block output_blocks in_layers emb_layers out_layers skip_connection
op time_embed label_emb out"""
_TEXT_WORDS = """text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 embeddings
token_embedding position_embedding final_layer_norm layer_norm1 layer_norm2 text_projection block layer
SelfAttention DenseReluDense q k v o wi wi_0 wi_1 wo shared"""
_WORDS = {
    component: sorted(words.split(), key=len, reverse=True)
    for component, words in (
        ("unet", _UNET_WORDS),
        ("text_encoder", _TEXT_WORDS),
        ("text_encoder_2", _TEXT_WORDS),
        ("text_encoder_3", _TEXT_WORDS),
    )
}

# ComfyUI's own names of CLIP models, which LoraSave writes
_COMFYUI_CLIP = {
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_h.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
}
_OLD_PROCESSOR = {"to_q_lora": "to_q", "to_k_lora": "to_k", "to_v_lora": "to_v", "to_out_lora": "to_out.0"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}
# XLabs' attention processors of Flux, by the layer of the original model that they change
_XLABS = {
    "qkv_lora1": "img_attn.qkv",
    "qkv_lora2": "txt_attn.qkv",
    "proj_lora1": "img_attn.proj",
    "proj_lora2": "txt_attn.proj",
    "qkv_lora": "linear1_qkv",
    "proj_lora": "linear2",
}
_LDM_HEADS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
_LDM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def _ldm_blocks() -> dict[str, str]:
    """Block names of the original (LDM, SGM) UNet of SD1, SD2 and SDXL, two residual blocks a level."""
    table = {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        table[f"middle_block.{i}"] = f"mid_block.{name}"
    for i in (0, 2):
        table[f"time_embed.{i}"] = f"time_embedding.linear_{i // 2 + 1}"
        table[f"label_emb.0.{i}"] = f"add_embedding.linear_{i // 2 + 1}"
    for level in range(4):
        for i in range(2):
            table[f"input_blocks.{3 * level + i + 1}.0"] = f"down_blocks.{level}.resnets.{i}"
            table[f"input_blocks.{3 * level + i + 1}.1"] = f"down_blocks.{level}.attentions.{i}"
        table[f"input_blocks.{3 * level + 3}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for i in range(3):
            table[f"output_blocks.{3 * level + i}.0"] = f"up_blocks.{level}.resnets.{i}"
            table[f"output_blocks.{3 * level + i}.1"] = f"up_blocks.{level}.attentions.{i}"
        # behind an attention the upsampler is module 2, where a level has none it is module 1
        table[f"output_blocks.{3 * level + 2}.1.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        table[f"output_blocks.{3 * level + 2}.2.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return table


_LDM_TO_DIFFUSERS = _ldm_blocks()
_DIFFUSERS_TO_LDM = {diffusers: ldm for ldm, diffusers in _LDM_TO_DIFFUSERS.items()}
_RESNET_TO_LDM = {diffusers: ldm for ldm, diffusers in _LDM_RESNET.items()}


@lru_cache(maxsize=1 << 15)  # the files of one model spell alike, and a saved file is read back
def canonical_name(stem: str) -> str:
    """The canonical name of a module, from the part of a key before its role (``.lora_down.weight``, ...)."""
    for prefix, component in KOHYA_COMPONENTS.items():
        if stem.startswith(prefix):
            flat = stem[len(prefix) :].removeprefix("_")  # Wan-Fun has one underscore too many
            flat = flat.removeprefix("unet_") if component == "unet" else flat
            dotted = _unflatten(flat, component)
            return f"{component}.{_tidy(dotted, component) if dotted else flat}"
    path = stem.removeprefix("base_model.model.")
    if path.startswith("model.diffusion_model."):
        path = path.removeprefix("model.")
    if path.removeprefix("diffusion_model.").startswith(("double_blocks.", "single_blocks.")):
        block, processor, layer = path.partition(".processor.")
        if processor and layer in _XLABS:
            return f"diffusion_model.{block.removeprefix('diffusion_model.')}.{_XLABS[layer]}"
    for prefix, component in _COMFYUI_CLIP.items():
        if path.startswith(f"{prefix}text_model.encoder.layers."):
            path = component + path.removeprefix(prefix)
    component, _, rest = path.partition(".")
    if component not in DOTTED_COMPONENTS:
        component, rest = _component_of(path), path
    rest = rest.removeprefix("base_model.model.")
    if component == "diffusion_model":
        if not rest.startswith(_LDM_HEADS):
            return f"diffusion_model.{rest}"
        component = "unet"
    return f"{component}.{_tidy(rest, component)}" if component else rest


def kohya_name(canonical: str, ldm: bool = False, single_text_encoder: bool = False) -> str:
    """The kohya spelling, with LDM block names for the UNet if asked (what SDXL trainers write)."""
    component, _, path = canonical.partition(".")
    if component == "text_encoders":  # only ComfyUI knows these, by this name
        return canonical
    if component == "unet" and ldm:
        path = to_ldm(path)
    prefix = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te_" if single_text_encoder else "lora_te1_",
        "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
        "transformer": "lora_transformer_",
        "diffusion_model": "lora_unet_",
    }.get(component)
    return f"{prefix}{path.replace('.', '_')}" if prefix else canonical.replace(".", "_")


def to_ldm(path: str) -> str:
    """The LDM name of a module of a diffusers UNet; unchanged where there is none."""
    for length in (5, 4, 3, 2, 1):
        parts = path.split(".")
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if len(parts) >= length and head in _DIFFUSERS_TO_LDM:
            rest = _RESNET_TO_LDM.get(rest, rest) if "resnets" in head else rest
            return ".".join(filter(None, (_DIFFUSERS_TO_LDM[head], rest)))
    return path


def is_doubled(stem: str) -> bool:
    """True for ``lora_unet_unet_...``, which some exporters wrote by mistake."""
    return stem.startswith("lora_unet_unet_")


def _component_of(path: str) -> str:
    head = path.partition(".")[0]
    if head in (
        "down_blocks",
        "up_blocks",
        "mid_block",
        "conv_in",
        "conv_out",
        "time_embedding",
        "add_embedding",
    ):
        return "unet"
    return "text_encoder" if head == "text_model" else ""


def _tidy(path: str, component: str) -> str:
    """Bring old module names to today's: LDM blocks, attention processors, the text model's prefix."""
    if component == "unet":
        path = _from_ldm(path)
    head, _, last = path.rpartition(".")
    if head.endswith(".processor"):
        last = last.removesuffix("_lora") + "_lora"
    if last in _OLD_PROCESSOR:
        last = _OLD_PROCESSOR[last]
        path = (
            f"{head.removesuffix('.processor')}.{_OLD_TEXT[last] if component.startswith('text') else last}"
        )
    if component in ("text_encoder", "text_encoder_2") and path.startswith(
        ("encoder.layers.", "embeddings.")
    ):
        path = f"text_model.{path}"
    return path


def _from_ldm(path: str) -> str:
    parts = path.split(".")
    for length in (4, 3, 2):
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if len(parts) >= length and head in _LDM_TO_DIFFUSERS:
            return ".".join(filter(None, (_LDM_TO_DIFFUSERS[head], _LDM_RESNET.get(rest, rest))))
    return path


def _unflatten(flat: str, component: str) -> str | None:
    """Put the dots back into an underscored path, word by word; None if a word is not known."""
    word, found, place = _word_pattern(component), [], 0
    while place < len(flat):
        match = word.match(flat, place)
        if match is None:
            return None
        found.append(match[1])
        place = match.end()
    return ".".join(found)


@cache
def _word_pattern(component: str) -> re.Pattern[str]:
    """A number, or the first word of the component's list that fits, and the underscore behind it."""
    return re.compile(rf"({'|'.join((r'[0-9]+', *_WORDS.get(component, ())))})(?:_|$)")
