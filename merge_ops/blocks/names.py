"""What the name of a layer says: which block the layer is in, and what sort of layer it is.

All spellings of a layer say the same: diffusers' names and those of LDM and SGM, dotted or flat, of UNets and
of transformers. A fused weight is not of a sort that only a part of it has.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..names.architectures import BLOCK_KINDS
from ..names.parts import DENOISERS, OTHER_DENOISERS, is_language_model

Facts = dict[str, int | None]  # word of a selector -> number of the block, None if the word has no number

_TEXT = {"text_encoder": 1, "text_encoder_2": 2, "text_encoder_3": 3, "text_encoder_4": 4}
_COMFYUI_TEXT = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3, "llama": 4}
_DENOISERS = (*DENOISERS, *OTHER_DENOISERS)

_LANGUAGE_MODELS = ("layers", "h")  # sequences of blocks in decoders, such as Llama's and GPT-2's
_KINDS: dict[str, str] = dict.fromkeys(_LANGUAGE_MODELS, "blocks") | BLOCK_KINDS
_SEQUENCE = re.compile(
    rf"(?:base_model_|language_model_|model_|transformer_|decoder_)*?({'|'.join(_KINDS)})_(\d+)(?:_|$)"
)
_REFINER = re.compile(r"refiner(?:_[a-z]+)*?_(\d+)(?:_|$)")
_TEXT_LAYER = re.compile(r"_(?:layers|block|h)_(\d+)_")
_DIFFUSERS = re.compile(
    r"(down|up)_blocks_(\d+)_(?:(?:resnets|attentions|motion_modules)_(\d+)|(?:down|up)samplers)(?:_|$)"
)
_LDM = re.compile(r"(input|output)_blocks_(\d+)(?:_|$)")
_PER_LEVEL = 3  # blocks at each resolution, as LDM numbers them

_FF = {"ff", "ffn", "mlp", "feedforward", "densereludense"}
_ATTENTION = {"attn", "attn1", "attn2", "attention", "selfattention", "encdecattention"}
_NORM = {"norm", "norm1", "norm2", "norm3", "norm4", "ln", "layernorm", "adaln", "mod", "modulation"}
_LETTERS = {"q": {"q", "query", "wq"}, "k": {"k", "key", "wk"}, "v": {"v", "value", "wv"}}
# gates and scales of LTX-2's attention between the streams have a2v and v2a in their names
_INTO_VIDEO = re.compile(r"(?:^|_)(?:audio_to_video|a2v)(?:_|$)")
_INTO_AUDIO = re.compile(r"(?:^|_)(?:video_to_audio|v2a)(?:_|$)")
_AUDIO = re.compile(r"(?:^|_)audio(?:_|$)")
_TIME = re.compile(
    r"(?:^|_)(?:time|timestep|timesteps|t_embedder|y_embedder|t_block|vector_in|guidance_in|emb_layers)(?:_|$)"
)
_CONV = re.compile(
    r"(?:^|_)(?:conv\d?|conv_in|conv_out|conv_shortcut|op|in_layers_2|out_layers_3|skip_connection)$"
    r"|^input_blocks_0_0$|^out_2$"
)
_RESNET = re.compile(r"_(?:resnets|in_layers|out_layers|emb_layers|skip_connection)(?:_|$)")
_LDM_NORM = re.compile(r"_(?:in|out)_layers_0$|^out_0$")
_PROJ = re.compile(
    r"(?:^|_)(?:proj_in|proj_out|linear2|final_layer_(?:.*_)?linear)$|^single_transformer_blocks_\d+_attn_to_out$"
)
_FUSED = re.compile(
    r"qkv_mlp|^single_transformer_blocks_\d+_attn_to_out$"
)  # Flux: attention and feed-forward


@lru_cache(maxsize=1 << 15)
def facts_of(name: str) -> Facts:
    """Return the words that select a layer, from its name in any dotted or flat spelling."""
    component, _, path = name.partition(".")
    if component == "text_encoders" or component in _TEXT:
        return _text_facts(component, path) | _sorts(_flat(path))
    flat = _flat(path if component in _DENOISERS else name)
    flat = flat.removeprefix("diffusion_model_")
    facts = {"unet": None} | _places(flat) | _streams(flat) | _sorts(flat)
    if is_language_model(name):  # a text encoder where an image model uses it, otherwise the model itself
        facts["te"] = _text_block(flat)
    return facts


def _flat(path: str) -> str:
    return path.replace(".", "_").lower().strip("_")


def _text_facts(component: str, path: str) -> Facts:
    number = _TEXT.get(component) or _COMFYUI_TEXT.get(path.partition(".")[0])
    block = _text_block(_flat(path))
    facts: Facts = {"te": block}
    if number:
        facts[f"te{number}"] = block
    return facts


def _text_block(flat: str) -> int | None:
    match = _TEXT_LAYER.search(f"_{flat}_")
    return int(match[1]) if match else None


def _places(flat: str) -> Facts:
    """The section and number of a UNet's block, in both numberings, or of a transformer's block."""
    if flat.startswith(("mid_block", "middle_block")):
        return {"mid": None}
    if flat.startswith("conv_in"):
        return {"IN": 0}
    if (match := _DIFFUSERS.match(flat)) is not None:
        side, level, inner = match[1], int(match[2]), match[3]
        place = int(inner) if inner else _PER_LEVEL - 1  # a sampler is the last of its level
        number = _PER_LEVEL * level + place
        return {"down": level, "IN": number + 1} if side == "down" else {"up": level, "OUT": number}
    if (match := _LDM.match(flat)) is not None:
        number = int(match[2])
        if match[1] == "output":
            return {"up": number // _PER_LEVEL, "OUT": number}
        return {"IN": number, "down": (number - 1) // _PER_LEVEL} if number else {"IN": 0}
    if (match := re.match(r"(down|up)_blocks_(\d+)", flat)) is not None:
        return {match[1]: int(match[2])}
    if "refiner" in flat:
        match = _REFINER.search(flat)
        return {"refiner": int(match[1]) if match else None}
    if (match := _SEQUENCE.match(flat)) is not None:
        return {"blocks": int(match[2]), _KINDS[match[1]]: int(match[2])}
    return {}


def _streams(flat: str) -> Facts:
    """Whether a layer makes sound; attention between the streams belongs to the one that it changes."""
    if _INTO_VIDEO.search(flat):
        return {"audio_to_video": None}
    if _INTO_AUDIO.search(flat):
        return {"audio": None, "video_to_audio": None}
    return {"audio": None} if _AUDIO.search(flat) else {}


def _sorts(flat: str) -> Facts:
    words: set[str] = set() if _FUSED.search(flat) else set(flat.split("_"))
    sorts = {
        "time": bool(_TIME.search(flat)),
        "conv": bool(_CONV.search(flat)) and "norm" not in words,
        "resnet": bool(_RESNET.search(flat)),
        "norm": bool(words & _NORM or _LDM_NORM.search(flat)),
        "proj": bool(_PROJ.search(flat)),
    }
    sorts["ff"] = bool(words & _FF or "feed_forward" in flat) and not sorts["time"]
    sorts["attn"] = bool(words & _ATTENTION) and not sorts["norm"]
    if sorts["attn"]:
        sorts |= _attention(flat, words)
    return {word: None for word, applies in sorts.items() if applies}


def _attention(flat: str, words: set[str]) -> dict[str, bool]:
    """Self- or cross-attention, and which of q, k, v and the output projection a layer of it is."""
    attention = {
        "self_attn": bool(words & {"attn1", "selfattention"}) or "self_attn" in flat,
        "cross_attn": bool(words & {"attn2", "encdecattention"}) or "cross_attn" in flat,
    }
    last = set(re.split(r"attn\d?|attention", flat)[-1].split("_"))
    letters = {letter: bool(last & spellings) for letter, spellings in _LETTERS.items()}
    fused = any(letters.values()) or any("qkv" in word or word == "kv" for word in last)
    out = not fused and bool(last & {"out", "o", "wo", "proj"})
    return attention | letters | {"out": out}
