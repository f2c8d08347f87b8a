"""Control LoRAs for Flux: with the weights of norms, and an input layer that also takes the control image.

Black Forest Labs' files (``img_in.lora_A.weight``, ``double_blocks.0.img_attn.norm.key_norm.scale``) and
those of diffusers (``transformer.x_embedder.lora_A.weight``, ``….attn.norm_k.weight``) hold the norms as they
replace those of the base. Both are brought to keys that state what they mean, the norms as ``.set_weight``
and the shape of the widened input as ``.reshape_weight``, which is how ComfyUI's loader reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

_NORM = re.compile(
    r"((?:double_blocks[._]\d+[._](?:img|txt)_attn|single_blocks[._]\d+)[._]norm[._](?:query|key)_norm)\.scale$"
)
_DIFFUSERS_NORM = re.compile(
    r"((?:^|\.)(?:single_)?transformer_blocks\.\d+\.attn\.norm_(?:added_)?[qk])\.weight$"
)
_NAMED_NORM = re.compile(
    r"(?:double_blocks[._](?P<double>\d+)[._](?P<stream>img|txt)_attn|single_blocks[._](?P<single>\d+))"
    r"[._]norm[._](?P<kind>query|key)_norm$"
)
_BARE = re.compile(r"(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)\.")
_PAIR = (".lora_A.weight", ".lora_down.weight")  # of the half that has the inputs
_UP = {".lora_A.weight": ".lora_B.weight", ".lora_down.weight": ".lora_up.weight"}
_INPUTS = ("img_in", "x_embedder")


def spell_out_control(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a control LoRA under keys that say what they are; those of others unchanged."""
    if not any(key.endswith(("_norm.scale", ".weight")) and _norm_in(key) for key in tensors):
        return tensors
    pairs = [key for key in tensors if key.endswith(_PAIR)]
    original = any(_NORM.search(key) for key in tensors)
    if not pairs or not (original or _is_flux_of_diffusers(tensors)):
        return tensors
    named = {_spelled_out(key): tensor for key, tensor in tensors.items()}
    for key in map(_spelled_out, pairs):
        end = next(end for end in _PAIR if key.endswith(end))
        stem = key.removesuffix(end)
        up = named.get(stem + _UP[end])
        if is_input(stem) and up is not None and up.ndim == named[key].ndim == 2:
            shape = torch.tensor([up.shape[0], named[key].shape[1]])
            named.setdefault(f"{stem}.reshape_weight", shape)
    return named


def is_input(name: str) -> bool:
    """Return True for the name of Flux's input layer, whose weight a control LoRA widens."""
    return name.endswith(_INPUTS) and re.split(r"[._](?=img_in$|x_embedder$)", name)[-1] in _INPUTS


def is_norm_of_diffusers(name: str) -> bool:
    """Return True for a norm of Flux whose weight diffusers reads from a control LoRA."""
    return _DIFFUSERS_NORM.search(f"{name}.weight") is not None


def norm_of_diffusers(name: str) -> str:
    """Return diffusers' name of a norm that Black Forest Labs' name is given of; other names unchanged."""
    found = _NAMED_NORM.search(name)
    if found is None:
        return name
    number, stream, letter = found["double"], found["stream"], "q" if found["kind"] == "query" else "k"
    if number is None:
        return f"transformer.single_transformer_blocks.{found['single']}.attn.norm_{letter}"
    return f"transformer.transformer_blocks.{number}.attn.norm_{'added_' * (stream == 'txt')}{letter}"


def _norm_in(key: str) -> str | None:
    """The name of the norm whose weight a key holds, if it is one."""
    found = _NORM.search(key) or _DIFFUSERS_NORM.search(key)
    return None if found is None else key[: found.end(1)]


def _is_flux_of_diffusers(keys: Iterable[str]) -> bool:
    return any("single_transformer_blocks." in key or ".x_embedder." in f".{key}" for key in keys)


def _spelled_out(key: str) -> str:
    norm = _norm_in(key)
    key = key if norm is None else f"{norm}.set_weight"
    return f"diffusion_model.{key}" if _BARE.match(key) else key
