"""What the merges shall reach, and whether they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LINEAR, CALIBRATED, DISTILLED = "linear", "calibrated", "distilled"
FIVE, RANK_8 = "distilled, styles on five prompts", "distilled at rank 8"

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that shall be at least (or at most) so much; ``found`` is None where the run did not measure it."""

    what: str
    wanted: Callable[[Data], float | None]
    found: Callable[[Data], float | None]
    at_most: bool = False


def mean(title: str, group: str, measure: str) -> Callable[[Data], float | None]:
    """The mean of a measure of a row over the sets of a group."""

    def read(data: Data) -> float | None:
        row = data.get("drawings", {}).get("rows", {}).get(title, {})
        found = row.get("groups", {}).get(group, {}).get(measure)
        return None if found is None else float(found["mean"])

    return read


def constant(value: float) -> Callable[[Data], float | None]:
    """A figure that is fixed."""
    return lambda data: value


def times(factor: float, read: Callable[[Data], float | None], more: float = 0.0) -> Callable[[Data], float | None]:
    """A figure that depends on another."""

    def wanted(data: Data) -> float | None:
        found = read(data)
        return None if found is None else factor * found + more

    return wanted


def text_kept(title: str, group: str) -> Callable[[Data], float | None]:
    """The share of the text LoRAs' gain that a row keeps."""

    def read(data: Data) -> float | None:
        found = data.get("text", {}).get("rows", {}).get(title, {}).get(group)
        return None if found is None else float(found["kept"])

    return read


GOALS = (
    *(Goal(f"{DISTILLED}, N = {n}: own skills", constant(0.95), mean(DISTILLED, n, "own")) for n in "23468"),
    *(Goal(f"{DISTILLED}, N = {n}: worst LoRA", constant(0.80), mean(DISTILLED, n, "worst")) for n in "23468"),
    *(Goal(f"{RANK_8}, N = {n}: own skills", constant(0.92), mean(RANK_8, n, "own")) for n in "23468"),
    *(Goal(f"{FIVE}, N = {n}: other subjects of a style", constant(0.85), mean(FIVE, n, "others")) for n in "23468"),
    *(
        Goal(f"{DISTILLED}, N = {n}: combinations, not below linear", mean(LINEAR, n, "pairs"),
             mean(DISTILLED, n, "pairs"))
        for n in "23"
    ),
    Goal(f"{DISTILLED}, N = 6: combinations, twice linear", times(2, mean(LINEAR, "6", "pairs")),
         mean(DISTILLED, "6", "pairs")),
    Goal(f"{CALIBRATED}, N = 6: own skills, linear + .10", times(1, mean(LINEAR, "6", "own"), 0.10),
         mean(CALIBRATED, "6", "own")),
    *(Goal(f"text, {DISTILLED}, {n} tasks: gain kept", constant(0.95), text_kept(DISTILLED, n)) for n in "35"),
    Goal("CPU seconds to record and distill six LoRAs", constant(40),
         lambda data: _seconds(data, DISTILLED, "6"), at_most=True),
)  # fmt: skip


def _seconds(data: Data, title: str, group: str) -> float | None:
    row = data.get("drawings", {}).get("rows", {}).get(title, {})
    found = row.get("groups", {}).get(group, {}).get("seconds")
    return None if found is None else float(found)


def verdicts(data: Data) -> list[dict[str, Any]]:
    """Return what every goal wants, what was found, and whether it is reached; only what was measured."""
    out = []
    for goal in GOALS:
        found, wanted = goal.found(data), goal.wanted(data)
        if found is None or wanted is None:
            continue
        reached = found <= wanted if goal.at_most else found >= wanted
        out.append({"goal": goal.what, "wanted": round(wanted, 3), "found": round(found, 3),
                    "at_most": goal.at_most, "reached": reached})  # fmt: skip
    return out
