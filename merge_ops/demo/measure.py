"""Merging, drawing and judging: the results that the picture and the table show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import IncompatibleLoraError, Lora, Merged, load
from ..learning import Recording
from ..merging import merge
from ..models.diffusers import patched
from .judge import judged, load_judge
from .learned import learn, recorded
from .model import ASSETS, STYLES, load_model, sample
from .plan import KNOWN, LORAS, MERGES, ROWS, Merge, Prompt, Row


@dataclass(frozen=True, slots=True)
class Cell:
    """The drawings of one model for one prompt, and the fraction with the right digit and style."""

    images: Tensor  # (count, 3, 24, 24)
    right: float


Cells = dict[Prompt, Cell]


@dataclass(frozen=True, slots=True)
class Result:
    """The drawings and scores of one run."""

    base: Cells
    alone: dict[str, Cells]  # by LoRA
    merged: dict[tuple[str, str], Cells | None]  # by method and merge; None if the method refuses
    rows: tuple[Row, ...]
    ranks: dict[str, int]
    count: int
    seed: int


class Studio:
    """The base model, the LoRAs and the judge, loaded once."""

    def __init__(self, count: int, seed: int) -> None:
        self.unet, self.tokens = load_model()
        self.judge = load_judge()
        self.loras: dict[str, Lora] = {
            name: load(ASSETS / "loras" / file) for name, (file, _) in LORAS.items()
        }
        self.count, self.seed = count, seed
        self._recordings: dict[str, Recording] = {}

    def draw(self, prompts: Sequence[Prompt], merged: Merged | None = None) -> Cells:
        """Draw and judge prompts with the base model, or with a merge added to it."""
        if merged is None:
            images = sample(self.unet, self.tokens, prompts, self.count, self.seed)
        else:
            with patched(self.unet, merged):
                images = sample(self.unet, self.tokens, prompts, self.count, self.seed)
        digits, styles = judged(self.judge, images.flatten(0, 1))
        cells = {}
        for index, (digit, style) in enumerate(prompts):
            here = slice(index * self.count, (index + 1) * self.count)
            right = (digits[here] == digit) & (styles[here] == STYLES.index(style))
            cells[digit, style] = Cell(images[index], float(right.float().mean()))
        return cells

    def alone(self, name: str) -> Cells:
        """Draw with one LoRA alone: its own skill, and what the base model knows."""
        return self.draw([LORAS[name][1], KNOWN], merge([self.loras[name]]))

    def merged(self, row: Row, group: Merge) -> Cells | None:
        """Draw with a merge by one method; None if the method refuses LoRAs of different ranks."""
        options: dict[str, Any] = dict(row.options)
        loras = [self.loras[name] for name in group.loras]
        if row.learned:
            return self.draw(group.prompts, learn(row.learned, self.unet, self._recorded(group), loras))
        weight = 1 / len(loras) if options.pop("average", False) else 1.0
        try:
            result = merge(loras, [weight] * len(loras), seed=self.seed, **options)
        except IncompatibleLoraError:
            return None
        return self.draw(group.prompts, result)

    def _recorded(self, group: Merge) -> Recording:
        """The recording of a group's LoRAs on their own prompts; every row that learns uses the same."""
        if group.title not in self._recordings:
            loras = [self.loras[name] for name in group.loras]
            prompts = [[LORAS[name][1]] for name in group.loras]
            self._recordings[group.title] = recorded(self.unet, self.tokens, loras, prompts)
        return self._recordings[group.title]


def measure(count: int, seed: int, rows: Sequence[Row] = ROWS) -> Result:
    """Run everything; afterwards the weights of the base model must be the same, bit for bit."""
    studio = Studio(count, seed)
    before = {name: value.clone() for name, value in studio.unet.state_dict().items()}
    asked = dict.fromkeys(prompt for group in MERGES for prompt in group.prompts)
    result = Result(
        base=studio.draw(list(asked)),
        alone={name: studio.alone(name) for name in LORAS},
        merged={(row.title, group.title): studio.merged(row, group) for row in rows for group in MERGES},
        rows=tuple(rows),
        ranks={name: lora.rank for name, lora in studio.loras.items()},
        count=count,
        seed=seed,
    )
    if not all(torch.equal(value, before[name]) for name, value in studio.unet.state_dict().items()):
        raise RuntimeError("the base model's weights were not restored")
    return result
