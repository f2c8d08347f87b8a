"""One list of LoRAs for two models, as the experts of Wan 2.2: what the merge nodes do for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ....merge_ops.errors import MergeError, ParameterError
from ....merge_ops.learning.recording import identity
from ....merge_ops.lora import Lora
from ....merge_ops.merging.step_distilled import is_step_distilled
from ....merge_ops.methods.registry import get_method
from ...values.keywords import BYPASS
from ...values.sides import list_doubts, name_sides, refuse_low, split_sides, take_once
from ...values.stack_entries import StackEntry
from ..learning.recorded import RecordedLoras
from ..merges.merging import run_merge
from ..patches.attachments import attach_as_chain, chain_of_entries
from ..patches.clones import patch_clones
from ..places.fitting import FittedLoras, fit_to_model
from .one_model import Job, Made, merge_for_model


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a merge node hands out for its model, or for both of them, and what it says."""

    high: Made  # that of the only model, if there is one
    low: Made
    clip: Any | None
    lines: list[str]
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class _Text:
    clip: Any | None
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Side:
    title: str
    input: str
    names: str  # of its LoRAs, for the user
    entries: list[StackEntry]
    model: Any | None
    recording: RecordedLoras | None

    def merge(self, clip: Any | None, job: Job) -> Made:
        """What a node with this model and these LoRAs alone would make."""
        if not self.entries:
            return Made.nothing(self.model)
        began = job.seconds()
        try:
            own = replace(job, seconds=lambda: job.seconds() - began)
            return merge_for_model(self.entries, self.model, clip, self.recording, own)
        except MergeError as error:
            raise type(error)(f"{self.title} ({self.input}): {error}") from error

    def head(self, made: Made) -> str:
        """The line that says what was merged for the model."""
        return f"{self.title}: {made.lines[0]}: {self.names}" if made.lines else f"{self.title}: no LoRA"


def merge_for_models(
    entries: list[StackEntry],
    model: Any | None,
    model_low: Any | None,
    clip: Any | None,
    recording: RecordedLoras | None,
    job: Job,
) -> Outputs:
    """Merge the LoRAs of a list for each model by itself, as nodes of their own would, and CLIP with all.

    Without ``model_low`` all LoRAs are for ``model``. Without any model there are two lists if rows say so.

    Raises:
        MergeError: if the LoRAs cannot be merged so, do not fit a model, or a row is for one that is missing.
    """
    if not _are_two(entries, model, model_low, recording):
        refuse_low(entries)
        made = merge_for_model(entries, model, clip, recording, job)
        return Outputs(made, Made.nothing(), made.clip, made.lines, made.warnings)
    (high_entries, low_entries), names = split_sides(entries), name_sides(entries)
    low_recording = recording.low if recording is not None else None
    if recording is not None and low_recording is None and low_entries:
        raise ParameterError(
            "the recording is of one model, and the list is for two: connect model_low to Record LoRAs too"
        )
    sides = (
        _Side("high-noise model", "model", names[0], high_entries, model, recording),
        _Side("low-noise model", "model_low", names[1], low_entries, model_low, low_recording),
    )
    made = [side.merge(clip, job) for side in sides]
    text = _patch_text(entries, made, clip, job) if clip is not None and job.applies else _Text(clip)
    heads = [side.head(one) for side, one in zip(sides, made, strict=True)]
    titles = [side.title for side in sides]
    lines = [*heads, *_told_apart(titles, [one.lines[1:] for one in made]), *text.lines]
    warnings = [*_told_apart(titles, [one.warnings for one in made]), *text.warnings, *list_doubts(entries)]
    return Outputs(made[0], made[1], text.clip, lines, list(dict.fromkeys(warnings)))


def _are_two(
    entries: Sequence[StackEntry], model: Any | None, model_low: Any | None, recording: RecordedLoras | None
) -> bool:
    """Whether the list is for two models."""
    two = model_low is not None
    if model is None and model_low is None:
        two = any(entry.on for entry in entries) if recording is None else recording.low is not None
    if recording is not None and recording.low is not None and not two:
        raise ParameterError("the recording is of two models: connect the low-noise one to model_low")
    return two


def _told_apart(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """What holds for both models once, and the rest with the model before it."""
    common = set(lines[0]).intersection(*lines[1:])
    own = [
        f"{title}: {line}"
        for title, told in zip(titles, lines, strict=True)
        for line in told
        if line not in common
    ]
    return [*(line for line in lines[0] if line in common), *own]


def _patch_text(entries: Sequence[StackEntry], made: Sequence[Made], clip: Any, job: Job) -> _Text:
    """CLIP with the text layers of all LoRAs, each once, merged as those of one list; and lines about it."""
    entries = take_once(entries)
    chain = chain_of_entries(entries)
    texts = _texts_of(entries, [one.fitted for one in made if one.fitted is not None and one.fitted.clip])
    if not any(lora.layers or lora.whole_weights for lora in texts):
        new_clip = clip.clone()
        return _Text(new_clip, warnings=attach_as_chain(chain, None, new_clip))
    fitted = fit_to_model(texts, None, clip, bypass=job.patching == BYPASS)
    asked, told = job.asked, []
    # a LoRA for fewer steps is told by all of its layers
    keywords = asked.keywords | {"apart": [is_step_distilled(entry.lora) for entry in entries]}
    moments = None
    if "method" in keywords and get_method(keywords["method"]).needs_recording:
        moments = {}
        told.append(
            f"CLIP: the LoRAs are added, since {keywords['method']} knows them in one model at a time"
        )
    if job.auto_strength:
        told.append(f"CLIP: strength {asked.strength:g}, since auto_strength measures each model by itself")
    merged, note = run_merge(
        fitted.loras, entries, keywords, asked.strength, job.on_cpu, job.show_progress, moments
    )
    patched = patch_clones(merged, fitted, None, clip, chain=chain, patching=job.patching)
    return _Text(patched.clip, patched.how, [*told, *patched.lines, *filter(None, [note])])


def _texts_of(entries: Sequence[StackEntry], fits: Sequence[FittedLoras]) -> list[Lora]:
    """The layers of each LoRA that CLIP has, less those that block strengths leave out."""
    found = {identity(lora): (lora, fitted.clip) for fitted in fits for lora in fitted.loras}
    texts = []
    for entry in entries if found else ():
        lora, known = found.get(identity(entry.lora), (entry.lora, {}))
        factor = entry.blocks.factor if entry.blocks else lambda _: 1.0
        layers = {name: layer for name, layer in lora.layers.items() if name in known and factor(name)}
        whole = {name: weight for name, weight in lora.whole_weights.items() if name in known}
        texts.append(replace(lora, layers=layers, base_dependent={}, whole_weights=whole))
    return texts
