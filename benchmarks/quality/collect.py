"""From results to the figures of the table: scores of every set, and their summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .plan import GROUPS, LoraSet, sources
from .rows import BASELINE, Row
from .score import MEASURES, Amount, Score, score
from .statistics import Summary, summarize
from .studio import Shares
from .work import Result, Store, Unit

Place = tuple[str, str]  # training and title of a set


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run measures."""

    sets: tuple[LoraSet, ...]
    trainings: tuple[str, ...]
    rows: tuple[Row, ...]
    amount: Amount

    def units(self, rows: Sequence[Row]) -> list[Unit]:
        """The sets, those that take longest first, so that no process is left alone at the end."""
        ordered = sorted(self.sets, key=lambda s: -len(s.names))
        return [Unit(t, self.amount, lora_set=s, rows=tuple(rows)) for s in ordered for t in self.trainings]


class Scores:
    """The score of every row on every set, and its summaries by number of LoRAs."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self._store = plan, store
        self._alone: dict[tuple[str, str], Shares] = {}
        self.scores: dict[str, dict[Place, Score]] = {row.title: {} for row in plan.rows}
        self.seconds: dict[str, dict[Place, float]] = {row.title: {} for row in plan.rows}
        self.groups = {s.title: s.group for s in plan.sets}
        for lora_set in plan.sets:
            for training in plan.trainings:
                self._add(lora_set, training)

    def _add(self, lora_set: LoraSet, training: str) -> None:
        alone: dict[str, list[Shares]] = {}
        for source in sources(lora_set, training):
            alone.setdefault(source[1], []).append(self.alone(*source))
        unit = Unit(training, self.plan.amount, lora_set=lora_set, rows=self.plan.rows)
        for row, key in zip(self.plan.rows, unit.keys(), strict=True):
            result: Result | None = self._store.results.get(key)
            if result is not None:
                self.scores[row.title][training, lora_set.title] = score(lora_set, result.shares, alone)
                self.seconds[row.title][training, lora_set.title] = result.seconds + result.recording

    def alone(self, training: str, name: str) -> Shares:
        """What one LoRA alone draws right."""
        (key,) = Unit(training, self.plan.amount, lora=name).keys()
        return self._store.results[key].shares

    def values(self, title: str, group: str, measure: str) -> dict[Place, float]:
        """One measure of a row on the sets of a group, where the sets have it."""
        found = {
            place: getattr(result, measure)
            for place, result in self.scores[title].items()
            if self.groups[place[1]] == group
        }
        return {place: value for place, value in found.items() if value is not None}

    def summary(self, title: str, group: str, measure: str) -> Summary | None:
        """Summarize one measure of a row, paired with linear; None where no set has it."""
        values = self.values(title, group, measure)
        if not values:
            return None
        baseline = self.values(BASELINE, group, measure) if BASELINE in self.scores else {}
        return summarize(values, baseline)

    def figures(self) -> dict[str, Any]:
        """Return everything as plain data."""
        names = dict.fromkeys(
            source for t in self.plan.trainings for s in self.plan.sets for source in sources(s, t)
        )
        return {
            "alone": {f"{training} {name}": _named(self.alone(training, name)) for training, name in names},
            "rows": {row.title: self._row(row) for row in self.plan.rows if self.scores[row.title]},
        }

    def _row(self, row: Row) -> dict[str, Any]:
        groups: dict[str, Any] = {}
        for group in GROUPS:
            found = {measure: self.summary(row.title, group, measure) for measure in MEASURES}
            kept = {measure: _rounded(summary) for measure, summary in found.items() if summary is not None}
            if kept:
                groups[group] = kept | {"seconds": self._seconds(row.title, group)}
        sets = {" ".join(place): _scores(result) for place, result in self.scores[row.title].items()}
        return {"clause": row.clause, "options": row.options, "groups": groups, "sets": sets}

    def _seconds(self, title: str, group: str) -> float:
        taken = [s for place, s in self.seconds[title].items() if self.groups[place[1]] == group]
        return round(sum(taken) / len(taken), 2)


def _named(shares: Shares) -> dict[str, float]:
    return {f"{style} {digit}": round(value, 4) for (digit, style), value in shares.items()}


def _scores(result: Score) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in asdict(result).items()}


def _rounded(summary: Summary) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in asdict(summary).items()
    }
