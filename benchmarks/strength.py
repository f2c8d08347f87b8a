"""Changing one strength: the time of a second merge of the same LoRAs, relative to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from merge_ops import Lora
from merge_ops.merging import merge

from .clock import cpu_seconds
from .inputs import DENSITY, RANK, fresh, make_loras, multipliers
from .rows import Row
from .sdxl import Layer


def _full_ties(loras: list[Lora], weights: list[float]) -> None:
    merged = merge(loras, weights, method="ties", density=DENSITY)
    for name in merged.layers:
        merged.delta(name)


def _factors(combination_type: str) -> Callable[[list[Lora], list[float]], None]:
    def call(loras: list[Lora], weights: list[float]) -> None:
        merged = merge(loras, weights, combination_type=combination_type, density=DENSITY, svd_rank=RANK)
        for name in merged.layers:
            merged.factors(name)

    return call


CALLS: dict[str, Callable[[list[Lora], list[float]], Any]] = {
    "ties, full deltas": _full_ties,
    "ties_svd": _factors("ties_svd"),
    "svd": _factors("svd"),
}


def strength_rows(layers: list[Layer], repeats: int) -> Iterator[Row]:
    """Time a first merge (``theirs``), and a second with another weight of the last LoRA (``ours``)."""
    loras = make_loras(layers, 2)
    first, second = multipliers(2), [*multipliers(2)[:-1], 0.35]
    for name, call in CALLS.items():
        call(fresh(loras), first)
        pairs = []
        for _ in range(repeats):
            new = fresh(loras)
            pairs.append(
                (
                    cpu_seconds(lambda c=call, n=new: c(n, first)),
                    cpu_seconds(lambda c=call, n=new: c(n, second)),
                )
            )
        row = Row("the first merge", name, 2, at_most=True)
        row.theirs, row.ours = median(a for a, _ in pairs), median(b for _, b in pairs)
        row.ratio = median(b / a for a, b in pairs)
        row.add_note(f"one strength changed; {len(layers)} layers")
        yield row
