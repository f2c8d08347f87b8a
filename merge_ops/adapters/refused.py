"""Kinds that are recognised by their tensors, and cannot be merged."""

from __future__ import annotations

from .kind import Kind

T_LORA = Kind("T-LoRA", dict.fromkeys((".lambda_layer", ".q_layer.weight", ".p_layer.weight"), ""))
EARLY_OFT = Kind("OFT of an early trainer", {".oft_diag": ""})
