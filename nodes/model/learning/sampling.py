"""Sampling as ComfyUI's KSampler does, to see what a model makes of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from torch import Tensor

from ..core import latent_layout

SWITCH = 0.5  # of the steps, from one model of a pair to the other, as in ComfyUI's own workflow for Wan 2.2


@dataclass(frozen=True, slots=True)
class Sampling:
    """How prompts are sampled: size in pixels, and the settings of a KSampler."""

    width: int = 512
    height: int = 512
    steps: int = 8
    sampler: str = "euler"
    scheduler: str = "normal"
    cfg: float = 7.0
    seed: int = 0

    def run(
        self,
        model: Any,
        clip: Any,
        prompts: Sequence[str],
        negative: str = "",
        after_step: Callable[[], None] | None = None,
        *,
        first: int | None = None,
        last: int | None = None,
        latents: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Sample one image a prompt with MODEL and CLIP, the n-th with the n-th noise; nothing is decoded.

        Steps are sampled from ``first`` to before ``last``, as by KSampler (Advanced): what is returned
        before the last step has noise left, and sampling goes on from such ``latents`` without new noise.
        ``after_step`` is called after each step, and when a prompt was encoded.
        """

        def step(*_: Any) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if after_step is not None:
                after_step()

        conditions = [_encode(clip, prompt) for prompt in prompts]
        against = _encode(clip, negative) if self.cfg != 1 else conditions[0]
        empty = empty_latent(model, self.width, self.height)
        sampled = []
        for number, condition in enumerate(conditions):
            seed = self.seed + number
            latent = empty if latents is None else latents[number]
            noise = comfy.sample.prepare_noise(latent, seed) if latents is None else torch.zeros_like(latent)
            sampled.append(comfy.sample.sample(
                model, noise, self.steps, self.cfg, self.sampler, self.scheduler, condition, against, latent,
                start_step=first, last_step=last, disable_noise=latents is not None, callback=step,
                disable_pbar=True, seed=seed,
            ))  # fmt: skip
        return sampled


def empty_latent(model: Any, width: int, height: int) -> Tensor:
    """Return an empty latent of one image, of the channels and dimensions that the model works with."""
    channels, ratio = latent_layout(model)
    latent = torch.zeros(1, channels, max(1, height // ratio), max(1, width // ratio))
    return comfy.sample.fix_empty_latent_channels(model, latent)


def _encode(clip: Any, prompt: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
