"""The base model, the judge and the LoRAs, loaded once in each process; drawing and judging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from merge_ops import Lora, Merged, load
from merge_ops.demo.judge import judged, load_judge
from merge_ops.demo.model import STYLES, load_model, sample
from merge_ops.demo.plan import Prompt
from merge_ops.models.diffusers import patched

from .plan import LoraSet, file_of, sources

SCORE_NOISE = 20_261  # drawings that are judged start from this noise; recordings use other seeds
BATCH = 128  # drawings at a time; larger batches are slower on a CPU

Shares = dict[Prompt, float]  # prompt -> share of its drawings with the right digit in the right style
Drawings = dict[Prompt, int]  # prompt -> how many drawings are judged


class Studio:
    """Draws with the base model, as it is or with a merge, and has the judge count what is right."""

    def __init__(self) -> None:
        torch.set_flush_denormal(True)  # numbers near zero would slow the processor down many times
        self.unet, self.tokens = load_model()
        self.judge = load_judge()
        self._loras: dict[tuple[str, str], Lora] = {}

    def lora(self, training: str, name: str) -> Lora:
        """Return one training of one LoRA."""
        if (training, name) not in self._loras:
            self._loras[training, name] = load(file_of(training, name))
        return self._loras[training, name]

    def loras(self, lora_set: LoraSet, training: str) -> list[Lora]:
        """Return the LoRAs of a set."""
        return [self.lora(*source) for source in sources(lora_set, training)]

    def draw(self, prompts: Sequence[Prompt], count: int, seed: int) -> Tensor:
        """Draw with the model as it is now: images in [0, 1], (prompts, count, 3, 24, 24)."""
        at_once = max(1, BATCH // count)
        parts = [
            sample(self.unet, self.tokens, prompts[start : start + at_once], count, seed)
            for start in range(0, len(prompts), at_once)
        ]
        return torch.cat(parts)

    def shares(self, drawings: Drawings, merged: Merged | None, seed: int = SCORE_NOISE) -> Shares:
        """Draw with the base, or with a merge added to it, and return how much the judge accepts."""
        result: Shares = {}
        with patched(self.unet, merged) if merged is not None else nullcontext():
            for count in sorted(set(drawings.values())):
                prompts = [prompt for prompt, wanted in drawings.items() if wanted == count]
                images = self.draw(prompts, count, seed)
                result |= zip(prompts, self._accepted(prompts, images), strict=True)
        return {prompt: result[prompt] for prompt in drawings}

    def _accepted(self, prompts: Sequence[Prompt], images: Tensor) -> Iterable[float]:
        digits, styles = judged(self.judge, images.flatten(0, 1))
        count = images.shape[1]
        for index, (digit, style) in enumerate(prompts):
            here = slice(index * count, (index + 1) * count)
            right = (digits[here] == digit) & (styles[here] == STYLES.index(style))
            yield float(right.float().mean())
