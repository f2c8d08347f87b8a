"""The LoRAs for one model, merged: what the merge nodes do for each model that they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....merge_ops.merging.merged import Merged
from ...values.keywords import AUTO, BYPASS, Asked
from ...values.stack_entries import StackEntry, has_steps, list_ignored_steps
from ..learning.recorded import RecordedLoras, merge_recorded, refuse_recording
from ..merges.lora_model import MergedLoraModel
from ..merges.merging import run_merge
from ..merges.summary import describe_merge, list_blocks, list_not_applied, list_notes
from ..patches.attachments import chain_of_entries
from ..patches.clones import Clones, patch_clones
from ..patches.hooks import MergeHook, make_hooks
from ..places.fitting import FittedLoras, fit_to_model
from .over_time import MergedOverTime, check_patching, merge_over_time


@dataclass(frozen=True, slots=True)
class Job:
    """What a merge node is asked to do with the LoRAs of each model."""

    asked: Asked
    seconds: Callable[[], float]  # since the node began
    show_progress: Callable[[str], None]
    label: str = ""  # of a sweep
    auto_strength: bool = False
    on_cpu: bool = False
    applies: bool = False  # whether the node hands out MODEL and CLIP
    patching: str = AUTO  # how the merge gets onto them


@dataclass(frozen=True, slots=True)
class Made:
    """What a merge node hands out for one model, and what it says about it."""

    lora: MergedLoraModel
    hooks: Any
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    model: Any | None = None
    clip: Any | None = None
    fitted: FittedLoras | None = None

    @classmethod
    def nothing(cls, model: Any | None = None) -> Made:
        """Return what is handed out where no LoRA is merged: the MODEL as it came."""
        return cls(MergedLoraModel(None), make_hooks(), model=model)


@dataclass(frozen=True, slots=True)
class MergedOnce:
    """One merge for all of the sampling; ``fitted`` is None where no model is connected."""

    entries: Sequence[StackEntry]
    whole: Merged
    fitted: FittedLoras | None
    is_for_model: bool
    patching: str

    def hooks(self) -> Any:
        """Return the merge as a hook, which refuses to be used if it was made without a model."""
        if self.fitted is None or not self.is_for_model:
            return make_hooks(MergeHook())
        return make_hooks(MergeHook.of(self.whole, self.fitted.unet, self.fitted.clip))

    def patch(self, model: Any, clip: Any | None, hooks: Any) -> Clones:
        """Return MODEL and CLIP with the merge, as clones."""
        assert self.fitted is not None
        chain = chain_of_entries(self.entries)
        return patch_clones(self.whole, self.fitted, model, clip, chain=chain, patching=self.patching)

    def list_notes(self, *notes: str) -> list[str]:
        """Return a line for each thing that a user should know of the merge."""
        ignored = list_ignored_steps(self.entries, "; hooks need model")
        return [*list_notes(self.whole, self.fitted, *notes), *ignored]

    def lora_model(self) -> MergedLoraModel:
        """Return the merge as LORA_MODEL."""
        return MergedLoraModel(self.whole, self.fitted.stems if self.fitted else None)

    def describe(self, seconds: float, label: str = "") -> list[str]:
        """Return what was merged, and what block strengths select."""
        return [describe_merge(self.whole, seconds, label), *list_blocks(self.whole)]


def merge_for_model(
    entries: list[StackEntry], model: Any | None, clip: Any | None, recording: RecordedLoras | None, job: Job
) -> Made:
    """Merge LoRAs for a model, and patch it if the node does.

    Raises:
        MergeError: if the LoRAs cannot be merged so, or do not fit the model.
    """
    merged, notes = _merge(entries, model, clip, recording, job)
    hooks = merged.hooks()
    lines, warnings = merged.describe(job.seconds(), job.label), merged.list_notes(*notes)
    patched = merged.patch(model, clip, hooks) if job.applies else None
    if patched is not None:
        lines[1:1] = patched.how
        warnings += [*list_not_applied(merged.whole, model, clip), *patched.lines]
    new_model, new_clip = (patched.model, patched.clip) if patched else (None, None)
    return Made(merged.lora_model(), hooks, lines, warnings, new_model, new_clip, merged.fitted)


def _merge(
    entries: list[StackEntry], model: Any | None, clip: Any | None, recording: RecordedLoras | None, job: Job
) -> tuple[MergedOnce | MergedOverTime, list[str]]:
    """The merge, and notes on how it was done."""
    how: dict[str, Any] = {"on_cpu": job.on_cpu, "show_progress": job.show_progress}
    if has_steps(entries) and model is not None:
        refuse_recording(recording)
        ignored = check_patching(job.patching)
        over, note = merge_over_time(entries, job.asked, model, clip, **how)
        return over, [note, ignored]
    fitted: FittedLoras | None = None
    if recording is not None:
        if model is not None:
            recording.host.check_model(model)
        fitted = recording.fitted
        merged, note = merge_recorded(recording, entries, job.asked, job.auto_strength, **how)
    else:
        loras = [entry.lora for entry in entries]
        if model is not None or clip is not None:
            fitted = fit_to_model(loras, model, clip, bypass=job.patching == BYPASS)
            loras = fitted.loras
        merged, note = run_merge(loras, entries, job.asked.keywords, job.asked.strength, **how)
    return MergedOnce(entries, merged, fitted, model is not None, job.patching), [note]
