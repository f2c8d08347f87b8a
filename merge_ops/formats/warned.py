"""Warnings about what is legal in a file and often a mistake, each with a count and an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import LoraFormatError, shown
from ..lora import BaseDependent, Layer, Lora
from ..patterns import ByPattern, Patterns

_LISTED = 3


def warnings_of_layers(
    layers: Mapping[str, Layer], base_dependent: Mapping[str, BaseDependent], has_more: bool
) -> list[str]:
    """Return warnings about alphas of 0 and below, and about a file that changes nothing.

    ``has_more`` is true if it also holds whole weights.
    """
    adapters: dict[str, Layer | BaseDependent] = {**layers, **base_dependent}
    scales = {name: scale for name, adapter in adapters.items() if (scale := adapter.alpha_scale) is not None}
    warnings = []
    if none := [name for name, scale in scales.items() if scale == 0]:
        warnings.append(
            f"alpha is 0 in {_counted(none)}, which gives them no effect; LyCORIS takes 0 to mean "
            "the rank, so a LyCORIS file may mean that"
        )
    if turned := [name for name, scale in scales.items() if scale < 0]:
        warnings.append(f"alpha is negative in {_counted(turned)}, which reverses what they learned")
    if layers and not base_dependent and not has_more and not any(map(_has_effect, layers.values())):
        warnings.append("no effect: all factors on one side are 0, as before training")
    return warnings


def warnings_of_config(config: Mapping[str, Any], ranks: Mapping[str, int | None]) -> list[str]:
    """Return where a PEFT configuration contradicts the tensors; ``ranks`` by the paths of the modules."""
    warnings = []
    for option in ("rank_pattern", "alpha_pattern"):
        table = config.get(option) or {}
        table = table if isinstance(table, ByPattern) else ByPattern(table)
        matched = {number for path in ranks for number in table.patterns.matches(path)}
        if stray := [pattern for number, pattern in enumerate(table) if number not in matched]:
            warnings.append(f"{option} names {_quoted(stray)}, which no module in the file matches")
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        warnings += _of_target_pattern(targets, ranks)
    elif isinstance(targets, list):
        if stray := _without_module([str(name) for name in targets], ranks):
            warnings.append(f"target_modules names {_quoted(stray)}, which no module in the file matches")
    return warnings + _other_ranks(config, ranks)


def _of_target_pattern(pattern: str, ranks: Mapping[str, int | None]) -> list[str]:
    try:
        patterns = Patterns([pattern], keys=False)
        if any(patterns.first(path) is not None for path in ranks):
            return []
    except LoraFormatError as error:  # it says what was trained, not what the tensors mean
        return [f"target_modules was not compared with the modules in the file: {error}"]
    return [f"target_modules is {shown(pattern)}, which no module in the file matches"]


def ranks_in(lora: Lora, part: str) -> dict[str, int | None]:
    """Return the ranks of the layers in one part of the model (``""``: in all), by their names in it."""
    start = f"{part}." if part else ""
    ranks = {name: layer.configured_rank for name, layer in lora.layers.items()}
    ranks |= {name: adapter.configured_rank for name, adapter in lora.base_dependent.items()}
    return {name.removeprefix(start): rank for name, rank in ranks.items() if name.startswith(start)}


def _other_ranks(config: Mapping[str, Any], ranks: Mapping[str, int | None]) -> list[str]:
    """Modules whose tensors have another rank than the single one that the configuration states."""
    stated = config.get("r")
    if config.get("rank_pattern") or isinstance(stated, bool) or not isinstance(stated, int):
        return []
    others = [path for path, rank in ranks.items() if rank not in (None, stated)]
    if not others:
        return []
    return [
        f"the configuration says rank {shown(stated)} but the tensors of {_counted(others)} have another; "
        "the rank of the tensors is used"
    ]


def _without_module(given: list[str], ranks: Mapping[str, int | None]) -> list[str]:
    """The names that are neither the path of a module nor what follows a dot in one."""
    sought, found = set(given), set[str]()
    for path in ranks:
        place = len(path) - max(map(len, sought), default=0)
        place = 0 if place <= 0 else path.find(".", place - 1) + 1 or len(path)
        while place < len(path):
            found.update({path[place:]} & sought)
            place = path.find(".", place) + 1 or len(path)
    return [name for name in given if name not in found]


def _has_effect(layer: Layer) -> bool:
    if layer.scale == 0:
        return False
    # every kind that is read is a product of its tensors
    return all(bool(tensor.to(torch.float32).any()) for tensor in layer.tensors)


def _counted(names: list[str]) -> str:
    return f"{len(names)} layer{'s' * (len(names) != 1)}, such as {names[0]}"


def _quoted(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(shown(name) for name in names[:_LISTED]) + more
