"""The rows of the table, and the goals."""

from __future__ import annotations

from dataclasses import dataclass

FACTOR_TYPES = ("cat", "linear", "ties", "magnitude_prune", "dare_linear", "dare_ties")
SVD_TYPES = ("svd", "ties_svd", "magnitude_prune_svd", "dare_linear_svd", "dare_ties_svd")
MEMORY_GOAL = 400  # MB above the inputs


@dataclass(slots=True)
class Row:
    """A method compared with a baseline. Seconds are CPU seconds of one thread.

    ``ratio`` is theirs / ours, and the goal is a minimum; with ``at_most``, ``ratio`` is ours / theirs and
    the goal is a maximum. ``extrapolated``: one layer of each shape was timed, times its number of layers.
    """

    against: str
    method: str
    n: int
    theirs: float | None = None
    ours: float | None = None
    ratio: float | None = None
    goal: float | None = None
    at_most: bool = False
    error: float | None = None
    their_error: float | None = None
    peak_mb: float | None = None
    their_peak_mb: float | None = None
    extrapolated: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is no goal or no figure."""
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    def add_note(self, text: str) -> None:
        """Append to the note."""
        self.note = f"{self.note}; {text}" if self.note else text


def goal_against_peft(combination_type: str, n: int) -> float:
    """Return how many times faster than PEFT a type must be."""
    if combination_type == "svd":
        return 1000 if n <= 2 else 500
    if combination_type.endswith("_svd"):
        return 60 if n <= 2 else 45
    return 8 if combination_type.startswith("dare") else 15
