"""What the merges shall reach, and whether they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LINEAR, CALIBRATED, DISTILLED = "linear", "calibrated", "distilled"
FIVE, RANK_8 = "distilled, styles on five prompts", "distilled at rank 8"

Data = dict[str, Any]
Read = Callable[[Data], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that shall be at least (or at most) so much; ``found`` is None where it was not measured."""

    what: str
    wanted: Read
    found: Read
    at_most: bool = False


def mean(title: str, group: str, measure: str) -> Read:
    """The mean of a measure of a row over the sets of a group."""

    def read(data: Data) -> float | None:
        row = data.get("drawings", {}).get("rows", {}).get(title, {})
        found = row.get("groups", {}).get(group, {}).get(measure)
        return None if found is None else float(found["mean"])

    return read


def constant(value: float) -> Read:
    """A figure that is fixed."""
    return lambda data: value


def times(factor: float, read: Read, more: float = 0.0) -> Read:
    """A figure that depends on another."""

    def wanted(data: Data) -> float | None:
        found = read(data)
        return None if found is None else factor * found + more

    return wanted


def text_kept(title: str, group: str) -> Read:
    """The share of the text LoRAs' gain that a row keeps."""

    def read(data: Data) -> float | None:
        found = data.get("text", {}).get("rows", {}).get(title, {}).get(group)
        return None if found is None else float(found["kept"])

    return read


def each(title: str, what: str, wanted: float, measure: str) -> list[Goal]:
    """The same goal for every number of LoRAs."""
    return [Goal(f"{title}, N = {n}: {what}", constant(wanted), mean(title, n, measure)) for n in "23468"]


GOALS = (
    *each(DISTILLED, "own skills", 0.95, "own"),
    *each(DISTILLED, "worst LoRA", 0.80, "worst"),
    *each(RANK_8, "own skills", 0.92, "own"),
    *each(FIVE, "other subjects of a style", 0.85, "others"),
    *(
        Goal(f"{DISTILLED}, N = {n}: combinations, not below linear", mean(LINEAR, n, "pairs"),
             mean(DISTILLED, n, "pairs"))
        for n in "23"
    ),
    Goal(f"{DISTILLED}, N = 6: combinations, twice linear", times(2, mean(LINEAR, "6", "pairs")),
         mean(DISTILLED, "6", "pairs")),
    Goal(f"{CALIBRATED}, N = 6: own skills, linear + .10", times(1, mean(LINEAR, "6", "own"), 0.10),
         mean(CALIBRATED, "6", "own")),
    *(
        Goal(f"text, {DISTILLED}, {n} tasks: gain kept", constant(0.95), text_kept(DISTILLED, n))
        for n in "35"
    ),
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
