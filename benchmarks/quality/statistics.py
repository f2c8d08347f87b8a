"""Paired differences: what a row gains over linear on the same sets, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """A mean over sets and trainings, and the mean difference to a baseline on the same ones.

    ``error`` is the standard error of that difference: the standard deviation of the differences over the
    square root of their number; None for fewer than two. Sets share LoRAs, so the true error is larger.
    """

    mean: float
    count: int
    difference: float | None = None
    error: float | None = None


def summarize(values: Mapping[Hashable, float], baseline: Mapping[Hashable, float] | None = None) -> Summary:
    """Summarize values by set and training, paired with a baseline's where both have one.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("there is nothing to summarize")
    mean = sum(values.values()) / len(values)
    differences = (
        [value - baseline[key] for key, value in values.items() if key in baseline] if baseline else []
    )
    if not differences:
        return Summary(mean, len(values))
    difference = sum(differences) / len(differences)
    return Summary(mean, len(values), difference, standard_error(differences))


def standard_error(values: list[float]) -> float | None:
    """Return the standard error of the mean, or None for fewer than two values."""
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return math.sqrt(variance / count)
