"""Layers that several models have, by their original names."""

from __future__ import annotations

from ..architecture import LayerNames

# of a time, guidance or vector embedder
EMBEDDER: LayerNames = {
    "in_layer": ("linear_1",),
    "out_layer": ("linear_2",),
    "mlp.0": ("linear_1",),
    "mlp.2": ("linear_2",),
}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
