"""Which LoRAs of a stack are for which of two models, as the experts of Wan 2.2. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...merge_ops.names.noise_experts import experts_of, names_of
from .stack_entries import StackEntry

BOTH = "both"


class Sides(NamedTuple):
    """The LoRAs of a stack for the model that samples at high noise, and for that of low noise."""

    high: list[StackEntry]
    low: list[StackEntry]


def sides_of(entries: Sequence[StackEntry]) -> list[str]:
    """Return ``high``, ``low`` or ``both`` for each LoRA: as its row says, else its names, else both."""
    named = experts_of([(entry.lora_name or "", *names_of(entry.lora)) for entry in entries])
    return [entry.on or expert or BOTH for entry, expert in zip(entries, named, strict=True)]


def split_sides(entries: Sequence[StackEntry]) -> Sides:
    """Return the LoRAs of each model, in their order; those for both are in both lists."""
    sides = list(zip(entries, sides_of(entries), strict=True))
    high, low = ([entry for entry, side in sides if side in (one, BOTH)] for one in ("high", "low"))
    return Sides(high, low)
