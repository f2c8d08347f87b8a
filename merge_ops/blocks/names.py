"""What the name of a layer says: in which block it is, and what sort of layer it is.

All spellings of a layer say the same: diffusers' names and those of LDM and SGM, dotted or flat, of UNets and
of transformers. A fused weight is of no sort that only a part of it has.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..names.architectures import is_language_model

Facts = dict[str, int | None]  # word -> number of the block, None where the word has none

_TEXT = {"text_encoder": 1, "text_encoder_2": 2, "text_encoder_3": 3}
_COMFYUI_TEXT = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3}
_MAIN = ("unet", "transformer", "diffusion_model")

_SEQUENCES = {
    name: kind
    for kind, names in {
        "double": "double_blocks double_stream_blocks double_layers joint_blocks joint_transformer_blocks "
        "transformer_blocks",
        "single": "single_blocks single_stream_blocks single_layers single_transformer_blocks",
        "blocks": "blocks layers h",
    }.items()
    for name in names.split()
}
_SEQUENCE = re.compile(
    rf"(?:base_model_|language_model_|model_|transformer_|decoder_)*?({'|'.join(_SEQUENCES)})_(\d+)(?:_|$)"
)
_REFINER = re.compile(r"refiner(?:_[a-z]+)*?_(\d+)(?:_|$)")
_TEXT_LAYER = re.compile(r"_(?:layers|block|h)_(\d+)_")
_DIFFUSERS = re.compile(
    r"(down|up)_blocks_(\d+)_(?:(?:resnets|attentions|motion_modules)_(\d+)|(?:down|up)samplers)(?:_|$)"
)
_LDM = re.compile(r"(input|output)_blocks_(\d+)(?:_|$)")
_PER_LEVEL = 3  # blocks of the LDM numbering at each resolution

_FF = {"ff", "ffn", "mlp", "feedforward", "densereludense"}
_ATTENTION = {"attn", "attn1", "attn2", "attention", "selfattention", "encdecattention"}
_NORM = {"norm", "norm1", "norm2", "norm3", "norm4", "ln", "layernorm", "adaln", "mod", "modulation"}
_LETTERS = {"q": {"q", "query", "wq"}, "k": {"k", "key", "wk"}, "v": {"v", "value", "wv"}}
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
    """The words that select a layer; the name is canonical, or has another dotted or flat spelling."""
    component, _, path = name.partition(".")
    if component == "text_encoders" or component in _TEXT:
        return _text_facts(component, path) | _sorts(_flat(path))
    flat = _flat(path if component in _MAIN else name)
    flat = flat.removeprefix("diffusion_model_")
    found = {"unet": None} | _places(flat) | _sorts(flat)
    if is_language_model(name):  # a text encoder where an image model uses it, else the model itself
        layer = _TEXT_LAYER.search(f"_{flat}_")
        found["te"] = int(layer[1]) if layer else None
    return found


def _flat(path: str) -> str:
    return path.replace(".", "_").lower().strip("_")


def _text_facts(component: str, path: str) -> Facts:
    number = _TEXT.get(component) or _COMFYUI_TEXT.get(path.partition(".")[0])
    layer = _TEXT_LAYER.search(f"_{_flat(path)}_")
    place = int(layer[1]) if layer else None
    found: Facts = {"te": place}
    if number:
        found[f"te{number}"] = place
    return found


def _places(flat: str) -> Facts:
    """Section and number of a UNet's block, in both numberings, or of a transformer's block."""
    if flat.startswith(("mid_block", "middle_block")):
        return {"mid": None}
    if flat.startswith("conv_in"):
        return {"IN": 0}
    if (found := _DIFFUSERS.match(flat)) is not None:
        side, level, inner = found[1], int(found[2]), found[3]
        behind = int(inner) if inner else _PER_LEVEL - 1  # a sampler is the last of its level
        first = _PER_LEVEL * level + behind
        return {"down": level, "IN": first + 1} if side == "down" else {"up": level, "OUT": first}
    if (found := _LDM.match(flat)) is not None:
        number = int(found[2])
        if found[1] == "output":
            return {"up": number // _PER_LEVEL, "OUT": number}
        return {"IN": number, "down": (number - 1) // _PER_LEVEL} if number else {"IN": 0}
    if (found := re.match(r"(down|up)_blocks_(\d+)", flat)) is not None:
        return {found[1]: int(found[2])}
    if "refiner" in flat:
        found = _REFINER.search(flat)
        return {"refiner": int(found[1]) if found else None}
    if (found := _SEQUENCE.match(flat)) is not None:
        return {"blocks": int(found[2]), _SEQUENCES[found[1]]: int(found[2])}
    return {}


def _sorts(flat: str) -> Facts:
    words: set[str] = set() if _FUSED.search(flat) else set(flat.split("_"))
    found = {
        "time": bool(_TIME.search(flat)),
        "conv": bool(_CONV.search(flat)) and "norm" not in words,
        "resnet": bool(_RESNET.search(flat)),
        "norm": bool(words & _NORM or _LDM_NORM.search(flat)),
        "proj": bool(_PROJ.search(flat)),
    }
    found["ff"] = bool(words & _FF or "feed_forward" in flat) and not found["time"]
    found["attn"] = bool(words & _ATTENTION) and not found["norm"]
    if found["attn"]:
        found |= _attention(flat, words)
    return {word: None for word, holds in found.items() if holds}


def _attention(flat: str, words: set[str]) -> dict[str, bool]:
    found = {
        "self_attn": bool(words & {"attn1", "selfattention"}) or "self_attn" in flat,
        "cross_attn": bool(words & {"attn2", "encdecattention"}) or "cross_attn" in flat,
    }
    last = set(re.split(r"attn\d?|attention", flat)[-1].split("_"))
    letters = {letter: bool(last & spellings) for letter, spellings in _LETTERS.items()}
    fused = any(letters.values()) or any("qkv" in word or word == "kv" for word in last)
    out = not fused and bool(last & {"out", "o", "wo", "proj"})
    return found | letters | {"out": out}
