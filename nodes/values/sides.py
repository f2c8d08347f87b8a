"""Which LoRAs of a stack are for which of two models, as the experts of Wan 2.2. Needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ...merge_ops.errors import ParameterError
from ...merge_ops.names.noise_experts import (
    PARTS,
    Expert,
    experts_in,
    experts_of,
    names_of,
    of_expert,
    stated_expert,
    without_expert,
)
from .stack_entries import StackEntry

HIGH, LOW, BOTH = "high", "low", "both"


class Sides(NamedTuple):
    """The LoRAs of a stack for the model that samples at high noise, and for that of low noise."""

    high: list[StackEntry]
    low: list[StackEntry]


def sides_of(entries: Sequence[StackEntry]) -> list[str]:
    """Return ``high``, ``low`` or ``both`` for each LoRA: as its row says, else its names, else both."""
    named = experts_of([_names(entry) for entry in entries])
    return [
        entry.on or expert or (LOW if experts_in(entry.lora) == (LOW,) else BOTH)
        for entry, expert in zip(entries, named, strict=True)
    ]


def split_sides(entries: Sequence[StackEntry]) -> Sides:
    """Return the LoRAs of each model, in their order; those for both are in both lists.

    Of a file in diffusers' format that holds both experts, each has its own part.
    """
    sides = list(zip(entries, sides_of(entries), strict=True))
    return Sides(
        [_part_of(entry, "high") for entry, side in sides if side != LOW],
        [_part_of(entry, "low") for entry, side in sides if side != HIGH],
    )


def take_once(entries: Sequence[StackEntry]) -> list[StackEntry]:
    """Return each LoRA as one of its models has it, where something is done once for both."""
    sides = zip(entries, sides_of(entries), strict=True)
    return [_part_of(entry, "low" if side == LOW else "high") for entry, side in sides]


def name_pair(entry: StackEntry) -> str:
    """Return a name that the LoRAs of a pair have in common, and a LoRA for both models with itself."""
    return without_expert(entry.lora_name or entry.lora.name)


def share_prompts(entries: Sequence[StackEntry]) -> list[StackEntry]:
    """Return the LoRAs with the prompts of the other one of their pair, where only that has some."""
    known: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        if entry.prompts:
            known.setdefault(name_pair(entry), entry.prompts)
    return [
        entry if entry.prompts else replace(entry, prompts=known.get(name_pair(entry), ()))
        for entry in entries
    ]


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
        held = experts_in(entry.lora)
        why = f"on={entry.on}" if entry.on else "by its layers" if held else "by its name"
        for one in (HIGH, LOW) if side == BOTH else (side,):
            known = f" ({why})" if entry.on or held or side != BOTH else ""
            listed[one].append(f"{entry.lora.name}{known}")
    return ", ".join(listed[HIGH]), ", ".join(listed[LOW])


def list_doubts(entries: Sequence[StackEntry]) -> list[str]:
    """Return a line for each LoRA whose names or layers say another model than it is merged for."""
    lines = []
    for entry, side in zip(entries, sides_of(entries), strict=True):
        name, held = entry.lora.name, experts_in(entry.lora)
        expert = None if entry.on or held or side != BOTH else stated_expert(_names(entry))
        if expert:
            lines.append(
                f"{name} is merged for both models: if it is for the {expert}-noise model only, write "
                f":on={expert} in its row, else :on=both"
            )
        lost = [PARTS[one] for one in held if side not in (one, BOTH)]
        if lost:
            lines.append(
                f"{name}: its layers of {lost[0]} are left out, since it is for the {side}-noise model"
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


def _part_of(entry: StackEntry, expert: Expert) -> StackEntry:
    return replace(entry, lora=of_expert(entry.lora, expert)) if experts_in(entry.lora) else entry


def _names(entry: StackEntry) -> tuple[str, ...]:
    return (entry.lora_name or "", *names_of(entry.lora))
