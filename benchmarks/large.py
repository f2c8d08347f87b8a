"""Layers of large models: nanoseconds a weight, and what a whole model takes."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from merge_ops.merging import merge

from .clock import cpu_seconds
from .inputs import DENSITY, fresh, make_loras, multipliers
from .rows import Row
from .sdxl import Layer


class Model(NamedTuple):
    """A layer that is typical of a model, the rank of its LoRAs, and how many weights they reach."""

    name: str
    rows: int
    columns: int
    rank: int
    weights: float
    goal: float  # nanoseconds a weight


MODELS = (
    Model("Flux", 3072, 12288, 16, 12e9, 10),
    Model("Qwen-Image", 3072, 12288, 32, 20e9, 15),
    Model("Wan 14B", 5120, 13824, 32, 14e9, 15),
)


def large_rows(repeats: int, quick: bool) -> Iterator[Row]:
    """Time ties_svd of two LoRAs of one layer, and reckon what the model takes at that rate."""
    for model in MODELS[: 1 if quick else None]:
        loras = make_loras([Layer("layer", model.rows, model.columns)], 2, model.rank)
        times = []
        for _ in range(repeats):
            new = fresh(loras)
            times.append(
                cpu_seconds(
                    lambda a=new, r=model.rank: merge(
                        a, multipliers(2), combination_type="ties_svd", density=DENSITY, svd_rank=r
                    )
                )
            )
        row = Row(
            "a nanosecond a weight",
            f"ties_svd, {model.name} {model.rows}x{model.columns}",
            2,
            goal=model.goal,
            at_most=True,
        )
        row.ours = median(times)
        row.ratio = row.ours * 1e9 / (model.rows * model.columns)
        minutes = row.ratio * model.weights / 60e9
        row.add_note(
            f"rank {model.rank}, one layer; {minutes:.1f} min for {model.weights / 1e9:.0f}e9 weights"
        )
        yield row
