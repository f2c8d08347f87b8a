"""LORA_RECORDING: what Record LoRAs hands to the nodes that measure, calibrate and distill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils

from ...merge_ops.errors import ParameterError
from ...merge_ops.learning import Recording, moments, record
from ...merge_ops.lora import Lora
from ..values.prompts import join_pairs, list_prompts
from ..values.stack_entries import StackEntry
from .fitting import FittedLoras, fit_to_model
from .learning_host import ComfyHost
from .sampling import Sampling

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedLoras:
    """A recording, the model that it was made with, and the LoRAs as they fit that model."""

    recording: Recording
    host: ComfyHost
    entries: tuple[StackEntry, ...]

    @property
    def fitted(self) -> FittedLoras:
        """The LoRAs under the names that they have in this model."""
        return self.host.fitted

    @property
    def loras(self) -> list[Lora]:
        """The LoRAs that were recorded."""
        return self.fitted.loras

    def moments_for(self, loras: list[Lora]) -> dict[str, Any]:
        """Return the second moments that a calibrated merge of these LoRAs needs.

        Raises:
            IncompatibleLoraError: if they are not the LoRAs that were recorded.
        """
        return dict(moments(self.recording, self.host, self.recording.match(loras)))


def record_loras(
    model: Any,
    clip: Any,
    entries: list[StackEntry],
    sampling: Sampling,
    keep: tuple[str, ...],
    together: tuple[str, ...] | None,
    negative: str = "",
    show: Show | None = None,
) -> RecordedLoras:
    """Sample with each LoRA alone, with none on the prompts to keep, and with all on prompts together.

    ``together`` None joins the prompts of each two LoRAs. The answer of each call of the diffusion model is
    recorded, and of the text encoders if the LoRAs have layers in them.

    Raises:
        MergeError: if a LoRA has no prompt, or does not fit the model.
    """
    prompts = list_prompts(entries)
    fitted = fit_to_model([entry.lora for entry in entries], model, clip)
    host = ComfyHost(model, clip, fitted)
    joined = join_pairs(prompts) if together is None else together
    loras = fitted.loras
    own = {id(lora): texts for lora, texts in zip(loras, prompts, strict=True)}
    count = sum(map(len, prompts)) + len(keep) + (len(joined) if len(loras) > 1 else 0)
    bar = comfy.utils.ProgressBar(max(1, count * sampling.steps))

    def sample(texts: tuple[str, ...]) -> None:
        sampling.run(host.model_now, host.clip_now, texts, negative, lambda: bar.update(1))

    def progress(done: int, total: int, what: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if show is not None and what:
            show(f"recording {what}, {done + 1} of {total}")

    recording = record(
        host,
        loras,
        lambda lora: sample(own[id(lora)]),
        weights=[entry.strength for entry in entries],
        text_weights=[entry.strength_clip for entry in entries],
        blocks=[entry.blocks for entry in entries],
        keep=(lambda: sample(keep)) if keep else None,
        together=(lambda: sample(joined)) if joined and len(loras) > 1 else None,
        prompts=prompts,
        keep_prompts=keep,
        together_prompts=joined,
        seed=sampling.seed,
        progress=progress,
    )
    return RecordedLoras(recording, host, tuple(entries))


def refuse_empty(entries: list[StackEntry]) -> None:
    """Refuse a stack in which no LoRA is on.

    Raises:
        ParameterError: if so.
    """
    if not entries:
        raise ParameterError(
            "no LoRA is switched on; add a line such as <lora:name:1:prompt=what it was trained on>"
        )
