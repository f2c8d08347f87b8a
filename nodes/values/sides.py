"""Which LoRAs of a stack are for which of two models, as the experts of Wan 2.2. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...merge_ops.errors import ParameterError
from ...merge_ops.names.noise_experts import experts_of, names_of, stated_expert
from .stack_entries import StackEntry

HIGH, LOW, BOTH = "high", "low", "both"


class Sides(NamedTuple):
    """The LoRAs of a stack for the model that samples at high noise, and for that of low noise."""

    high: list[StackEntry]
    low: list[StackEntry]


def sides_of(entries: Sequence[StackEntry]) -> list[str]:
    """Return ``high``, ``low`` or ``both`` for each LoRA: as its row says, else its names, else both."""
    named = experts_of([_names(entry) for entry in entries])
    return [entry.on or expert or BOTH for entry, expert in zip(entries, named, strict=True)]


def split_sides(entries: Sequence[StackEntry]) -> Sides:
    """Return the LoRAs of each model, in their order; those for both are in both lists."""
    sides = list(zip(entries, sides_of(entries), strict=True))
    high, low = ([entry for entry, side in sides if side in (one, BOTH)] for one in (HIGH, LOW))
    return Sides(high, low)


def group_sides(entries: Sequence[StackEntry]) -> list[list[int]]:
    """Return the places of the LoRAs of each model; nothing if no two LoRAs are for different models."""
    sides = sides_of(entries)
    if not {HIGH, LOW} <= set(sides):
        return []
    return [[place for place, side in enumerate(sides) if side in (one, BOTH)] for one in (HIGH, LOW)]


def name_sides(entries: Sequence[StackEntry]) -> tuple[str, str]:
    """Return the names of the LoRAs of each model, and how it is known that they are for it."""
    listed: dict[str, list[str]] = {HIGH: [], LOW: []}
    for entry, side in zip(entries, sides_of(entries), strict=True):
        why = f" (on={entry.on})" if entry.on else " (by its name)" if side != BOTH else ""
        for one in (HIGH, LOW) if side == BOTH else (side,):
            listed[one].append(f"{entry.lora.name}{why}")
    return ", ".join(listed[HIGH]), ", ".join(listed[LOW])


def list_unsure(entries: Sequence[StackEntry]) -> list[str]:
    """Return a line for each LoRA that is for both models although its name has a word for one of them."""
    lines = []
    for entry, side in zip(entries, sides_of(entries), strict=True):
        expert = None if entry.on or side != BOTH else stated_expert(_names(entry))
        if expert:
            lines.append(
                f"{entry.lora.name} is merged for both models: if it is for the {expert}-noise model only, "
                f"write :on={expert} in its row, else :on=both"
            )
    return lines


def refuse_low(entries: Sequence[StackEntry]) -> None:
    """Refuse rows for the low-noise model, where there is none.

    Raises:
        ParameterError: if there is one.
    """
    names = ", ".join(entry.lora.name for entry in entries if entry.on == LOW)
    if names:
        raise ParameterError(
            f"{names} is for the low-noise model (on=low): connect model_low, or remove on=low from the list"
        )


def _names(entry: StackEntry) -> tuple[str, ...]:
    return (entry.lora_name or "", *names_of(entry.lora))
