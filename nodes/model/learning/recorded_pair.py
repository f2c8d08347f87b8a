"""Recording LoRAs for two models that sample one after the other, as the experts of Wan 2.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ....merge_ops.errors import MergeError, ParameterError
from ....merge_ops.merging.merge import carry_out
from ....merge_ops.merging.merged import Merged
from ....merge_ops.merging.request import Request
from ...values.sides import name_pair, share_prompts, split_sides
from ...values.stack_entries import StackEntry
from ..core import patcher_of
from .host import ComfyHost
from .recorded import TITLES, Plan, RecordedLoras, Tick, record_loras
from .sampling import SWITCH


def record_for_models(
    model: Any, model_low: Any, clip: Any, entries: list[StackEntry], plan: Plan, switch: float = SWITCH
) -> RecordedLoras:
    """Record the LoRAs of each model of a pair; ``low`` of the result is the recording of the second.

    ``model`` samples the first steps of each prompt, a share ``switch`` of them, and ``model_low`` goes on
    from there, as two KSampler (Advanced) nodes do. While a LoRA is recorded on ``model_low``, its other half
    is on ``model``. Text encoders are recorded with ``model``.

    Raises:
        MergeError: if a LoRA has no prompt or does not fit its model, or if none is for ``model``.
    """
    if patcher_of(model).model is patcher_of(model_low).model:
        raise ParameterError("model and model_low are one model; connect the other model of the pair")
    high, low = split_sides(share_prompts(entries))
    if not high:
        raise ParameterError(
            "all LoRAs of the list are for the low-noise model: connect that one to model, and nothing to "
            "model_low"
        )
    steps = plan.sampling.steps
    last = min(max(round(switch * steps), 1), steps - 1)

    def begin(host: ComfyHost, _on: Sequence[int] | None, texts: Sequence[str], tick: Tick) -> None:
        plan.sampling.run(host.model_now, host.clip_now, texts, plan.negative, tick, last=last)

    first = _record(TITLES[0], model, clip, high, replace(plan, sample=begin, steps=last))
    if not low:
        return first
    pairs = [name_pair(entry) for entry in first.entries]

    def end(host: ComfyHost, on: Sequence[int] | None, texts: Sequence[str], tick: Tick) -> None:
        wanted = set(pairs) if on is None else {name_pair(low[place]) for place in on}
        with first.host.applied(_sum_of(first, [name in wanted for name in pairs])):
            begun = plan.sampling.run(
                first.host.model_now, first.host.clip_now, texts, plan.negative, tick, last=last
            )
        plan.sampling.run(
            host.model_now, host.clip_now, texts, plan.negative, tick, first=last, latents=begun
        )

    second = _record(TITLES[1], model_low, clip, low, replace(plan, sample=end), with_text=False)
    return replace(first, low=second)


def _record(
    title: str, model: Any, clip: Any, entries: list[StackEntry], plan: Plan, with_text: bool = True
) -> RecordedLoras:
    def show(text: str) -> None:
        if plan.show is not None:
            plan.show(f"{title}: {text}")

    try:
        return record_loras(model, clip, entries, replace(plan, show=show), with_text)
    except MergeError as error:
        raise type(error)(f"{title}: {error}") from error


def _sum_of(recorded: RecordedLoras, chosen: Sequence[bool]) -> Merged | None:
    """The linear merge of some of the recorded LoRAs, at the strengths of their rows."""
    entries = [entry for entry, is_on in zip(recorded.entries, chosen, strict=True) if is_on]
    loras = [lora for lora, is_on in zip(recorded.loras, chosen, strict=True) if is_on]
    if not loras:
        return None
    request = Request.of(
        loras, [entry.strength for entry in entries],
        text_weights=[entry.strength_clip for entry in entries], blocks=[entry.blocks for entry in entries],
    )  # fmt: skip
    return carry_out(request, loras)
