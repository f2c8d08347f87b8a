"""LORA_RECORDING: what Record LoRAs hands to the nodes that measure, calibrate and distill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ....merge_ops.errors import ParameterError
from ....merge_ops.learning import Recording, Retention, best_scale, moments, record
from ....merge_ops.learning.calibrate import SCALES
from ....merge_ops.learning.measured import measured
from ....merge_ops.learning.prompts import join_pairs
from ....merge_ops.lora import Lora
from ....merge_ops.merging.merge import carry_out
from ....merge_ops.merging.merged import Merged
from ....merge_ops.methods.registry import get_method
from ...values.keywords import Asked
from ...values.prompts import list_prompts
from ...values.stack_entries import StackEntry
from ..merges.merging import run_merge
from ..places.fitting import FittedLoras, fit_to_model
from .host import Applied, ComfyHost
from .sampling import Sampling

TITLES = ("high-noise model", "low-noise model")  # of a pair
Show = Callable[[str], None]
Tick = Callable[[], None]
Sample = Callable[[ComfyHost, Sequence[int] | None, Sequence[str], Tick], None]


@dataclass(frozen=True, slots=True, eq=False)
class RecordedLoras:
    """A recording, the model that it was made with, and the LoRAs as they fit that model."""

    recording: Recording
    host: ComfyHost
    model: Any  # the user's, which the host may hold a second time
    clip: Any
    entries: tuple[StackEntry, ...]
    low: RecordedLoras | None = None  # that of the low-noise model, where this is of the high-noise one

    @property
    def fitted(self) -> FittedLoras:
        """The LoRAs under the names that they have in this model."""
        return self.host.fitted

    @property
    def loras(self) -> list[Lora]:
        """The LoRAs that were recorded."""
        return self.fitted.loras

    @property
    def sides(self) -> list[RecordedLoras]:
        """The recording of each model: of this one, and of the low-noise one of a pair."""
        return [self, *filter(None, [self.low])]

    @property
    def all_loras(self) -> list[Lora]:
        """The LoRAs that were recorded, with either model."""
        return [lora for side in self.sides for lora in side.loras]

    def match(self, entries: Sequence[StackEntry]) -> tuple[list[Lora], list[StackEntry]]:
        """Return the fitted LoRAs and the entries of a stack, both in the order of the recording.

        Raises:
            IncompatibleLoraError: if the stack holds other LoRAs than the recording.
        """
        order = self.recording.match([entry.lora for entry in entries])
        left = list(entries)
        found = []
        for lora in order:
            found.append(left.pop(next(i for i, entry in enumerate(left) if entry.lora is lora)))
        return self.recording.match(self.loras), found

    def moments(self) -> dict[str, Tensor]:
        """Return what a calibrated merge needs, for the LoRAs in the order of the recording."""
        return moments(self.recording, self.host, self.loras)

    def merge(self, method: str, scale: float, seen: dict[str, Tensor] | None) -> Merged:
        """Merge the recorded LoRAs at the strengths that they were recorded with."""
        loras = self.recording.match(self.loras)
        needed = seen if get_method(method).needs_recording else None
        return carry_out(self.recording.request(loras, method, scale), loras, moments=needed)

    def measure(self, merged: Merged | Applied | None) -> Retention:
        """Measure what a merge, or a patched MODEL, keeps of each LoRA.

        Raises:
            ParameterError: if MODEL is another one than was recorded.
        """
        if isinstance(merged, Applied):
            merged = self.host.adopt(merged)
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.recording.check(self.host)
        with self.host.applied(merged), torch.no_grad():
            return measured(self.recording, self.host)


@dataclass(frozen=True, slots=True)
class Plan:
    """How LoRAs are recorded. ``together`` None joins the prompts of each two LoRAs.

    ``sample`` samples prompts with a host that has some of the LoRAs, given by their places in the list
    (None: all of them), and calls a function after each step.
    """

    sampling: Sampling
    keep: tuple[str, ...]
    together: tuple[str, ...] | None
    negative: str = ""
    show: Show | None = None
    sample: Sample | None = None  # None: all steps, with the model of the host
    steps: int | None = None  # of a prompt, where they are others than those of ``sampling``

    def run(self, host: ComfyHost, on: Sequence[int] | None, texts: Sequence[str], tick: Tick) -> None:
        """Sample prompts with what is in the host now."""
        if self.sample is not None:
            self.sample(host, on, texts, tick)
        else:
            self.sampling.run(host.model_now, host.clip_now, texts, self.negative, tick)


def record_loras(
    model: Any, clip: Any, entries: list[StackEntry], plan: Plan, with_text: bool = True
) -> RecordedLoras:
    """Sample with each LoRA alone, with none on the prompts to keep, and with all on prompts together.

    Prompts that are joined are sampled with only the two LoRAs that they are of. The answer of each call of
    the diffusion model is recorded, and of the text encoders if the LoRAs have layers in them.

    Raises:
        MergeError: if a LoRA has no prompt, or does not fit the model.
    """
    prompts = list_prompts(entries)
    fitted = fit_to_model([entry.lora for entry in entries], model, clip)
    with_text = with_text and any(entry.strength_clip for entry in entries)
    host = ComfyHost(model, clip, fitted, with_text=with_text)
    keep, together = plan.keep, plan.together
    pairs = join_pairs(prompts) if together is None else []
    named = tuple(text for _, text in pairs) if together is None else together
    loras = fitted.loras
    places = {id(lora): place for place, lora in enumerate(loras)}
    count = sum(map(len, prompts)) + len(keep) + (len(named) if len(loras) > 1 else 0)
    bar = comfy.utils.ProgressBar(max(1, count * (plan.steps or plan.sampling.steps)))

    def sample(on: Sequence[int] | None, texts: Sequence[str]) -> None:
        plan.run(host, on, texts, lambda: bar.update(1))

    def progress(done: int, total: int, what: str) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if plan.show is not None and what:
            plan.show(f"recording {what}, {done + 1} of {total}")

    recording = record(
        host,
        loras,
        lambda lora: sample([places[id(lora)]], prompts[places[id(lora)]]),
        weights=[entry.strength for entry in entries],
        text_weights=[entry.strength_clip for entry in entries],
        blocks=[entry.blocks for entry in entries],
        keep=(lambda: sample([], keep)) if keep else None,
        together=[((loras[i], loras[j]), partial(sample, (i, j), (text,))) for (i, j), text in pairs]
        or ((lambda: sample(None, named)) if named else None),
        prompts=prompts,
        keep_prompts=keep,
        together_prompts=named,
        seed=plan.sampling.seed,
        progress=progress,
    )
    return RecordedLoras(recording, host, model, clip, tuple(entries))


def merge_recorded(
    recorded: RecordedLoras,
    entries: list[StackEntry],
    asked: Asked,
    auto_strength: bool = False,
    on_cpu: bool = False,
    show_progress: Show | None = None,
) -> tuple[Merged, str]:
    """Merge a stack of recorded LoRAs by any method, with what a calibrated one needs.

    ``auto_strength`` tries a few strengths of the whole merge around the one that is asked for, and takes the
    one that keeps most. The second result is a note on what was done.

    Raises:
        MergeError: if the stack holds other LoRAs than the recording.
    """
    loras, entries = recorded.match(entries)
    name = asked.keywords.get("method")
    seen = recorded.moments() if name is not None and get_method(name).needs_recording else None
    notes: list[str] = []

    def merge_at(scale: float) -> Merged:
        merged, note = run_merge(loras, entries, asked.keywords, scale, on_cpu, show_progress, seen)
        notes.append(note)
        return merged

    if not auto_strength:
        return merge_at(asked.strength), "".join(notes)
    scales = [asked.strength * scale for scale in SCALES]
    best, tried = best_scale(recorded.recording, recorded.host, merge_at, scales)
    kept = ", ".join(f"{scale:g}: {100 * found.mean:.0f} %" for scale, found in tried.items())
    return merge_at(best), f"strength {best:g} keeps most of the LoRAs ({kept})"


def refuse_without_recording(recording: RecordedLoras | None, asked: Asked, auto_strength: bool) -> None:
    """Refuse what only a recording makes possible, where none is connected.

    Raises:
        ParameterError: if so.
    """
    name = asked.keywords.get("method")
    if recording is None and (auto_strength or (name is not None and get_method(name).needs_recording)):
        what = "auto_strength" if auto_strength else f"method {name}"
        raise ParameterError(f"{what} needs to know what the LoRAs do: connect Record LoRAs to recording")


def refuse_recording(recording: RecordedLoras | None) -> None:
    """Refuse a recording for LoRAs whose strength changes over the sampling: they were recorded at one.

    Raises:
        ParameterError: if there is one.
    """
    if recording is not None:
        raise ParameterError(
            "the LoRAs were recorded at one strength each, and steps= changes it over the sampling; "
            "disconnect recording, or remove steps= from the list"
        )


def refuse_empty(entries: list[StackEntry]) -> None:
    """Refuse a stack in which no LoRA is on.

    Raises:
        ParameterError: if so.
    """
    if not entries:
        raise ParameterError(
            "no LoRA is switched on; add a line such as <lora:name:1:prompt=what it was trained on>"
        )
