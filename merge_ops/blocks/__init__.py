"""Strengths of a LoRA by block and by sort of layer, such as ``down:0.5 mid:1 attn:0.8``."""

from .presets import PRESETS
from .strengths import BlockStrengths, block_strengths

__all__ = ["PRESETS", "BlockStrengths", "block_strengths"]
