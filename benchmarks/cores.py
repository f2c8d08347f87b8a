"""All cores against one: seconds that pass, with the CPU seconds beside them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from merge_ops import Lora
from merge_ops.merging import merge

from .inputs import DENSITY, RANK, fresh, make_loras, multipliers
from .rows import Row
from .sdxl import Layer

GOAL_ON_TWO = 1.7
CASES: dict[str, dict[str, Any]] = {
    "ties, thresholds": {"method": "ties", "density": DENSITY},
    "ties_svd": {"combination_type": "ties_svd", "density": DENSITY, "svd_rank": RANK},
    "dare_ties_svd": {"combination_type": "dare_ties_svd", "density": DENSITY, "svd_rank": RANK},
    "svd": {"combination_type": "svd", "svd_rank": RANK},
}


def core_rows(layers: list[Layer], repeats: int) -> Iterator[Row]:
    """Time merges on one thread (``theirs``) and on as many as there are cores (``ours``), alternately."""
    cores, loras = os.cpu_count() or 1, make_loras(layers, 2)
    for name, how in CASES.items():
        row = Row("one core", f"{name}, {cores} cores", 2, goal=GOAL_ON_TWO if cores > 1 else None)
        try:
            pairs = [(_timed(1, _call(loras, how)), _timed(cores, _call(loras, how))) for _ in range(repeats)]
        finally:
            torch.set_num_threads(1)
        row.theirs, row.ours = median(a for (a, _), _ in pairs), median(b for _, (b, _) in pairs)
        row.ratio = median(a / b for (a, _), (b, _) in pairs)
        spent = median(cpu for _, (_, cpu) in pairs)
        row.add_note(f"seconds that pass; {len(layers)} layers; {spent:.2f} CPU seconds on {cores} cores")
        yield row


def _call(loras: list[Lora], how: dict[str, Any]) -> Callable[[], Any]:
    new = fresh(loras)  # nothing is known of these yet
    return lambda: merge(new, multipliers(2), **how)


def _timed(threads: int, call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that passed, and CPU seconds."""
    torch.set_num_threads(threads)
    begin, spent = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - spent
