"""Timing two computations in CPU seconds, alternating so that both see the same machine load."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Median CPU seconds of both sides, and the median of the ratios theirs / ours."""

    theirs: float
    ours: float
    ratio: float


def cpu_seconds(call: Call, at_least: float = 0.0) -> float:
    """Return the CPU seconds of one call; short calls are repeated for ``at_least`` seconds and averaged."""
    calls, begin = 0, time.process_time()
    while True:
        call()
        calls += 1
        spent = time.process_time() - begin
        if spent >= at_least:
            return spent / calls


def alternate(
    theirs: Call, ours: Call, repeats: int, at_least: float = 0.0, after: Call | None = None
) -> Timing:
    """Time both sides alternately; ``after`` runs after each of their calls and is not timed."""
    pairs = []
    for _ in range(repeats):
        first = cpu_seconds(theirs)
        if after is not None:
            after()
        pairs.append((first, cpu_seconds(ours, at_least)))
    return Timing(median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs))


def median_seconds(call: Call, repeats: int, at_least: float = 0.0) -> float:
    """Return the median CPU seconds of a computation, after one uncounted call."""
    call()
    return median(cpu_seconds(call, at_least) for _ in range(repeats))
