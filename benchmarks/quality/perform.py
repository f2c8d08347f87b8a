"""What one process does with a unit of work."""

from __future__ import annotations

import functools
import os
import time

import torch

from merge_ops import merge

from .learned import Learner
from .plan import LoraSet
from .rows import Row, merge_row
from .studio import Studio
from .work import Result, Unit, alone_drawings, set_drawings


@functools.cache
def studio() -> Studio:
    """The studio of this process, on one thread."""
    torch.set_num_threads(1)
    return Studio()


def perform(unit: Unit) -> list[Result]:
    """Draw and judge a unit; one result for each row."""
    if unit.lora_set is None:
        alone = merge([studio().lora(unit.training, unit.lora)])
        return [Result(studio().shares(alone_drawings(unit.lora, unit.amount), alone), 0.0)]
    return [_row(unit, unit.lora_set, row) for row in unit.rows]


def _row(unit: Unit, lora_set: LoraSet, row: Row) -> Result:
    loras = studio().loras(lora_set, unit.training)
    recording = 0.0
    if row.learned:
        learner = _learner(unit.training, lora_set)
        recording = learner.recording(row.style_prompts)[1]
        begin = time.process_time()
        merged = learner.merge(row)
    else:
        begin = time.process_time()
        merged = merge_row(row, loras)
    seconds = time.process_time() - begin
    return Result(studio().shares(set_drawings(unit), merged), seconds, recording)


@functools.lru_cache(maxsize=1)
def _learner(training: str, lora_set: LoraSet) -> Learner:
    return Learner(studio(), lora_set, studio().loras(lora_set, training))


def default_workers() -> int:
    """As many processes as there are processors, at most four."""
    return max(1, min(4, os.cpu_count() or 1))
