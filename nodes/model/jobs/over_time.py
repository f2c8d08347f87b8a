"""Merges that change over the sampling: one for each set of strengths, and when each is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....merge_ops.errors import ParameterError
from ....merge_ops.merging.merged import Merged
from ...values.keywords import BYPASS, ONE_PATCH, Asked
from ...values.stack_entries import StackEntry
from ...values.steps import Window, cut_into_windows
from ..merges.lora_model import MergedLoraModel
from ..merges.merging import run_merge
from ..merges.summary import describe_merge, list_blocks, list_left_out, list_notes
from ..patches.attachments import chain_of_entries
from ..patches.clones import Clones, patch_clones
from ..patches.hooks import MergeHook, Spans, carry_hooks, list_unhooked, make_hooks, refuse_unhookable
from ..places.fitting import FittedLoras, fit_to_model


@dataclass(frozen=True, slots=True)
class MergedOverTime:
    """The merge of each window, and that of all LoRAs at their full strengths."""

    entries: Sequence[StackEntry]
    windows: list[Window]
    merges: dict[tuple[float, ...], tuple[Merged, FittedLoras]]  # by the factors of the LoRAs
    whole: Merged
    fitted: FittedLoras

    def hooks(self) -> Any:
        """Return the merges as hooks. Text encoders get the merge of all LoRAs, which no window changes."""
        hooks = []
        for factors, (merged, fitted) in self.merges.items():
            spans = Spans(
                [(window.start, window.end) for window in self.windows if window.factors == factors]
            )
            hooks.append(MergeHook.of(merged, fitted.unet, {}, spans))
        if self.fitted.clip:
            hooks.append(MergeHook.of(self.whole, {}, self.fitted.clip))
        return make_hooks(*hooks)

    def patch(self, model: Any, clip: Any | None, hooks: Any) -> Clones:
        """Return MODEL with the merges as ``hooks``, and CLIP with the merge of all LoRAs, as clones."""
        chain = chain_of_entries(self.entries)
        patched = patch_clones(self.whole, self.fitted, model, clip, strength_model=0, chain=chain)
        return patched._replace(model=carry_hooks(patched.model, hooks))

    def list_notes(self, *notes: str) -> list[str]:
        """Return a line for each thing that a user should know of the merges, each once."""
        lines = [line for merged, fitted in self.merges.values() for line in list_notes(merged, fitted)]
        lines += [*list_left_out(self.whole, self.fitted), *list_unhooked(self.whole)]
        lines.append(
            f"steps= of {self._timed} holds in model and hooks; CLIP and lora have the full strength"
            " throughout"
        )
        return list(dict.fromkeys([*lines, *filter(None, notes)]))

    def lora_model(self) -> MergedLoraModel:
        """Return the merge of all LoRAs, which says what it cannot hold where it is saved or applied."""
        note = f"steps= of {self._timed} cannot be part of a LoRA: the full strength holds throughout"
        return MergedLoraModel(self.whole, self.fitted.stems, [note])

    @property
    def _timed(self) -> str:
        return ", ".join(entry.lora.name for entry in self.entries if entry.steps is not None)

    def describe(self, seconds: float, label: str = "") -> list[str]:
        """Return what was merged, and a line for each window: which LoRAs are on, and how strong."""
        lines = [describe_merge(self.whole, seconds, label)]
        for start, end, factors in self.windows:
            lines.append(f"{start:g} to {end:g} of the sampling: {self._describe(factors)}")
        return lines + list_blocks(self.whole)

    def _describe(self, factors: tuple[float, ...]) -> str:
        on = [
            f"{entry.lora.name} {entry.strength * factor:.4g}"
            for entry, factor in zip(self.entries, factors, strict=True)
            if factor
        ]
        return ", ".join(on) or "no LoRA"


def check_patching(patching: str) -> str:
    """Return a line if the way in which the merge should get onto the model does not hold with ``steps=``.

    Raises:
        ParameterError: for bypass.
    """
    if patching == BYPASS:
        raise ParameterError(
            "patching bypass cannot change over the sampling, which ComfyUI's hooks do by patching weights; "
            "remove steps= from the list, or set patching to auto"
        )
    if patching == ONE_PATCH:
        return "steps= works by hooks, which patch with each LoRA by itself: patching one patch has no effect"
    return ""


def merge_over_time(
    entries: Sequence[StackEntry],
    asked: Asked,
    model: Any,
    clip: Any | None,
    show_progress: Callable[[str], None] | None = None,
    on_cpu: bool = False,
) -> tuple[MergedOverTime, str]:
    """Merge the LoRAs of each window as if they were the list, and all at their full strengths.

    Windows with the same strengths share a merge, and those with the same LoRAs share what was measured of
    them. The second result is a note on the memory that was used.

    Raises:
        MergeError: if the LoRAs cannot be merged so.
    """
    refuse_unhookable(model)
    windows = cut_into_windows([entry.steps for entry in entries])
    fitted: dict[tuple[int, ...], FittedLoras] = {}
    notes: dict[str, None] = {}

    def merge_at(factors: tuple[float, ...]) -> tuple[Merged, FittedLoras]:
        on = tuple(i for i, factor in enumerate(factors) if factor)
        if on not in fitted:
            fitted[on] = fit_to_model([entries[i].lora for i in on], model, clip)
        scaled = [replace(entries[i], strength=entries[i].strength * factors[i]) for i in on]
        merged, note = run_merge(
            fitted[on].loras, scaled, asked.keywords, asked.strength, on_cpu, show_progress
        )
        notes[note] = None
        return merged, fitted[on]

    full = (1.0,) * len(entries)
    wanted = dict.fromkeys([full, *(window.factors for window in windows if any(window.factors))])
    merges = {factors: merge_at(factors) for factors in wanted}
    whole, whole_fitted = merges[full]
    if full not in {window.factors for window in windows}:
        del merges[full]
    return MergedOverTime(entries, windows, merges, whole, whole_fitted), "; ".join(filter(None, notes))
