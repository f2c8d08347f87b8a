"""The growth of time with layers, LoRAs and rank, as slopes on logarithmic axes (1 is linear)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from merge_ops import Lora
from merge_ops.merging import merge

from .clock import median_seconds
from .inputs import DENSITY, RANK, make_loras, multipliers
from .sdxl import Layer

TYPES = ("ties", "dare_linear", "ties_svd")
FULL = {"layers": (4, 8, 16, 32, 64), "LoRAs": (2, 3, 4, 6, 8), "rank": (8, 16, 32, 64, 128)}
QUICK = {"layers": (2, 4, 8, 16), "LoRAs": (2, 4, 8), "rank": (8, 32, 128)}


@dataclass(frozen=True, slots=True)
class Series:
    """CPU seconds of one type along one axis."""

    axis: str
    method: str
    points: tuple[tuple[int, float], ...]

    @property
    def slope(self) -> float:
        """The slope on logarithmic axes."""
        x, y = np.log(np.array(self.points)).T
        return float(np.polyfit(x, y, 1)[0])


def scaling_series(quick: bool) -> Iterator[Series]:
    """Time every type along every axis, on layers of one shape."""
    side, repeats, fixed = (640, 1, 4) if quick else (1280, 3, 8)
    for axis, values in (QUICK if quick else FULL).items():
        for method in TYPES:
            points = []
            for value in values:
                setup = {"layers": fixed, "LoRAs": 2, "rank": RANK, axis: value}
                layers = [Layer(f"{i}.to_q", side, side) for i in range(setup["layers"])]
                loras = make_loras(layers, setup["LoRAs"], setup["rank"])
                rank = setup["rank"]
                points.append(
                    (value, median_seconds(lambda a=loras, m=method, r=rank: _merge(a, m, r), repeats, 0.02))
                )
            yield Series(axis, method, tuple(points))


def _merge(loras: list[Lora], combination_type: str, rank: int) -> None:
    weights = multipliers(len(loras))
    merged = merge(loras, weights, combination_type=combination_type, density=DENSITY, svd_rank=rank)
    for name in merged.layers:
        merged.factors(name)
