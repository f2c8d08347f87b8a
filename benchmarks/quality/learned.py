"""The merges that learn from a recording of the demo's model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from merge_ops import Lora, Merged
from merge_ops.demo.learned import recorded
from merge_ops.demo.plan import Prompt
from merge_ops.learning import Recording, calibrate, distill
from merge_ops.models.hosts import DiffusersHost

from .plan import KNOWN_DIGITS, OWN, STYLE_SUBJECTS, LoraSet
from .rows import Row
from .studio import Studio

KEEP: tuple[Prompt, ...] = ((0, "plain"), (1, "plain"))  # what the scores ask of the base is not shown
TOGETHER_UP_TO = 3  # with more LoRAs addition itself loses the combinations, so it cannot teach them


def prompts_of(name: str, style_prompts: int) -> list[Prompt]:
    """The prompts that a LoRA is recorded with: its own, and for a style that of other subjects too."""
    digit, style = OWN[name]
    if name not in STYLE_SUBJECTS:
        return [OWN[name]]
    others = [other for other in KNOWN_DIGITS if other != digit]
    return [(subject, style) for subject in [digit, *others][:style_prompts]]


class Learner:
    """The merges of one set that need a recording; rows that need the same recording share it."""

    def __init__(self, studio: Studio, lora_set: LoraSet, loras: Sequence[Lora]) -> None:
        self.studio, self.lora_set, self.loras = studio, lora_set, loras
        self._recordings: dict[int, tuple[Recording, float]] = {}

    def recording(self, style_prompts: int) -> tuple[Recording, float]:
        """Return the recording and the CPU seconds that it took."""
        if style_prompts not in self._recordings:
            begin = time.process_time()
            prompts = [prompts_of(name, style_prompts) for name in self.lora_set.names]
            pairs = self.lora_set.pairs() if len(self.loras) <= TOGETHER_UP_TO else []
            made = recorded(self.studio.unet, self.studio.tokens, self.loras, prompts, KEEP, pairs)
            self._recordings[style_prompts] = made, time.process_time() - begin
        return self._recordings[style_prompts]

    def merge(self, row: Row) -> Merged:
        """Merge by a row that learns."""
        host = DiffusersHost(self.studio.unet)
        recording, _ = self.recording(row.style_prompts)
        options: dict[str, Any] = row.options
        if row.learned == "calibrated":
            return calibrate(recording, host, self.loras, **options)
        return distill(recording, host, self.loras, **options)
