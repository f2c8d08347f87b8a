"""OpenCLIP's names of a text encoder, which checkpoints of SD2.x and SDXL have, as transformers' names."""

from __future__ import annotations

import re

_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTER = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}
_WHOLE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
}
# the weight of the text projection is stored as (in, out)
TRANSPOSED = ("text_projection.weight",)


def from_open_clip(path: str) -> tuple[str, ...]:
    """Return transformers' names of a tensor: three of equal parts of its rows for q, k and v, else one.

    ``()`` for a tensor that transformers' text encoder does not have.
    """
    if path in _WHOLE:
        return (_WHOLE[path],)
    stem, _, last = path.rpartition(".")
    if stem in _OUTER:
        return (f"{_OUTER[stem]}.{last}",)
    match = _LAYER.fullmatch(path)
    if match is None:
        return ()
    layer = f"text_model.encoder.layers.{match[1]}"
    for role in ("weight", "bias"):
        if match[2] == f"attn.in_proj_{role}":
            return tuple(f"{layer}.self_attn.{part}_proj.{role}" for part in "qkv")
    inner, _, last = match[2].rpartition(".")
    return (f"{layer}.{_INNER[inner]}.{last}",) if inner in _INNER else ()
