"""Merging the text LoRAs by every row, and scoring the sentence encoder with each merge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from merge_ops import Lora, Merged, load, merge
from merge_ops.demo.text.encoder import Encoder
from merge_ops.demo.text.learned import RECORDED, Learner
from merge_ops.models.applied import AppliedMerge

from ..rows import Row, merge_row
from .tasks import GROUPS, LORAS, TASKS

QUICK_ROWS = ("linear", "ties", "even", "calibrated", "distilled")

Scores = dict[str, float]  # task -> share of its texts that are right


class TextBench:
    """The encoder, the heads of the tasks, the LoRAs and the texts that are scored, loaded once."""

    def __init__(self, split: str = "test") -> None:
        self.encoder = Encoder()
        self.heads = self.encoder.heads(TASKS)
        self.texts = {name: task.texts(split) for name, task in TASKS.items()}
        self.loras: dict[str, Lora] = {name: load(folder) for name, folder in LORAS.items()}
        self.modules = dict(self.encoder.model.named_modules())
        self._learners: dict[tuple[str, ...], Learner] = {}

    def score(self, merged: Merged | None, tasks: Sequence[str]) -> Scores:
        """Score the encoder as it is, or with a merge added to its weights."""
        if merged is not None:
            with AppliedMerge(self.modules.get, merged):
                return self.score(None, tasks)
        return {task: self.encoder.right(*self.texts[task], self.heads[task]) for task in tasks}

    def learner(self, tasks: Sequence[str]) -> Learner:
        """Return the recording of some tasks' LoRAs, made when a row first needs it."""
        key = tuple(tasks)
        if key not in self._learners:
            loras = {task: self.loras[task] for task in tasks}
            self._learners[key] = Learner(self.encoder, self.heads, loras, TASKS)
        return self._learners[key]

    def merge(self, row: Row, tasks: Sequence[str]) -> Merged:
        """Merge the LoRAs of some tasks by a row."""
        if row.learned:
            # the steps of a row were chosen for drawings; texts have their own
            options = {name: value for name, value in row.options.items() if name != "steps"}
            return self.learner(tasks).merge(row.learned, **options)
        return merge_row(row, [self.loras[task] for task in tasks])


def measure_texts(rows: Sequence[Row], quick: bool = False, split: str = "test") -> dict[str, Any]:
    """Score every row on three and on five tasks; rows that differ only in style prompts are run once.

    A quick run scores some of the rows on three tasks.
    """
    bench = TextBench(split)
    rows = [row for row in rows if not quick or row.title in QUICK_ROWS]
    groups = {group: tasks for group, tasks in GROUPS.items() if not quick or group == "3"}
    base = bench.score(None, list(TASKS))
    alone = {task: bench.score(merge([lora]), [task])[task] for task, lora in bench.loras.items()}
    found: dict[str, Any] = {row.title: {} for row in rows if row.style_prompts == 1}
    for group, tasks in groups.items():
        if any(row.learned for row in rows):
            bench.learner(tasks)  # so that the seconds of a row are those of its merge
        for row in rows:
            if row.style_prompts > 1:
                continue
            begin = time.process_time()
            merged = bench.merge(row, tasks)
            seconds = time.process_time() - begin
            scores = bench.score(merged, tasks)
            found[row.title][group] = kept(scores, base, alone) | {"seconds": round(seconds, 2)}
    return {
        "texts": len(bench.texts["number"][0]), "recorded": RECORDED,
        "tasks": {group: list(tasks) for group, tasks in groups.items()},
        "base": _rounded(base), "alone": _rounded(alone),
        "rows": found,
    }  # fmt: skip


def kept(scores: Scores, base: Scores, alone: Scores) -> dict[str, Any]:
    """Return the gain over the base as a share of that of the LoRAs alone: of all tasks, and of the worst."""
    gains = {task: alone[task] - base[task] for task in scores}
    shares = {task: (scores[task] - base[task]) / gains[task] for task in scores}
    whole = sum(scores[task] - base[task] for task in scores) / sum(gains.values())
    return {"kept": round(whole, 4), "worst": round(min(shares.values()), 4), "tasks": _rounded(shares)}


def _rounded(values: Scores) -> Scores:
    return {name: round(value, 4) for name, value in values.items()}
