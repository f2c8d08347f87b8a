"""The text encoder of OpenCLIP, as checkpoints of SD2 and SDXL have it, under the names of transformers."""

from __future__ import annotations

import re
from typing import NamedTuple

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FUSED = {"attn.in_proj_weight": "", "attn.in_proj_bias": ".bias"}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUTSIDE = {
    "ln_final.weight": "final_layer_norm",
    "ln_final.bias": "final_layer_norm.bias",
    "token_embedding.weight": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding",
}


class ClipNames(NamedTuple):
    """The layers that share the rows of a tensor evenly, and whether it is stored as ``(in, out)``."""

    layers: tuple[str, ...]
    turned: bool = False


def from_open_clip(name: str) -> ClipNames | None:
    """Return the layers of a tensor of OpenCLIP by the names of transformers; None for any other tensor.

    ``name`` is the whole name of the tensor, with ``.weight`` or ``.bias`` where it has that.
    """
    if name == "text_projection":
        return ClipNames(("text_projection",), turned=True)
    if name in _OUTSIDE:
        return ClipNames((f"text_model.{_OUTSIDE[name]}",))
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    head, inner = f"text_model.encoder.layers.{match[1]}.", match[2]
    if inner in _FUSED:
        return ClipNames(tuple(f"{head}{layer}{_FUSED[inner]}" for layer in _QKV))
    module, _, last = inner.rpartition(".")
    if module not in _IN_BLOCK or last not in ("weight", "bias"):
        return None
    return ClipNames((head + _IN_BLOCK[module] + (".bias" if last == "bias" else ""),))
