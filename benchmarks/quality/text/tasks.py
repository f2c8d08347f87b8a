"""The tasks: the three of the text demo, and two more whose texts and LoRAs are the benchmark's own."""

from __future__ import annotations

from pathlib import Path

from merge_ops.demo.text.plan import LORAS as DEMO_LORAS
from merge_ops.demo.text.tasks import TASKS as DEMO_TASKS
from merge_ops.demo.text.tasks import Task

from ..plan import ASSETS

FOLDER = ASSETS / "text"

MORE = {
    task.name: task
    for task in (
        Task("number", "is this noun singular or plural?",
             {"singular": "this word means one thing", "plural": "this word means several things"}, FOLDER),
        Task("tense", "which form does this verb have?",
             {"base": "this verb is an infinitive", "past": "this verb is in the past tense",
              "ing": "this verb is a present participle"}, FOLDER),
    )
}  # fmt: skip
TASKS = DEMO_TASKS | MORE
LORAS: dict[str, Path] = DEMO_LORAS | {name: FOLDER / "loras" / name for name in MORE}
GROUPS = {"3": tuple(DEMO_TASKS), "5": tuple(TASKS)}  # what is merged
