"""Merge LoRAs: a stack becomes one LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..merge_ops.errors import ParameterError
from .inputs import (
    CATEGORY,
    COMMUNITY_STACK,
    DTYPES,
    LORA_MODEL,
    METHOD,
    STACK,
    auto_strength_input,
    hooks_output,
    recording_input,
    result_inputs,
    speed_loras_input,
)
from .model.fitting import FittedLoras, fit_to_model
from .model.hooks import MergeHook, make_hooks
from .model.lora_model import MergedLoraModel
from .model.merging import run_merge
from .model.recorded import RecordedLoras, merge_recorded, refuse_recording, refuse_without_recording
from .model.stacks import read_stack
from .model.summary import describe_merge, list_blocks, list_notes
from .model.windows import merge_over_time
from .status import SAYS, Said, StatusLine
from .values.keywords import MethodChoice
from .values.stack_entries import change_entries, has_steps, list_ignored_steps


class LoraAlloyMerge(io.ComfyNode):
    """Merges without touching a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyMerge",
            display_name="Merge LoRAs",
            category=CATEGORY,
            description="Merge a stack of LoRAs into one LoRA, to apply, save or inspect it.",
            search_aliases=["merge lora stack", "combine lora stack"],
            inputs=[
                io.MultiType.Input("stack", types=[STACK, COMMUNITY_STACK], tooltip="The LoRAs to merge."),
                METHOD.Input(
                    "method",
                    optional=True,
                    tooltip="The method, from Merge Method or Sweep Parameter. Without it, the LoRAs "
                    "are merged with linear.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Connect it to match layers by the weights of this model instead of by name. "
                        "Adapters that depend on the base weights, such as DoRA, need it."
                    ),
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder that belongs to the model."),
                recording_input(),
                *result_inputs(),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="float32",
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Data type of a result that this node computes in full: with a rank, in "
                        "factors space, or with a PEFT type. The computation itself uses float32."
                    ),
                ),
                io.Combo.Input(
                    "device",
                    options=["auto", "cpu"],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto uses ComfyUI's device, and the CPU if that runs out of memory.",
                ),
                auto_strength_input(),
                speed_loras_input(),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="The merged LoRA, to apply or save."),
                io.String.Output(display_name="report", tooltip="What was merged and what was left out."),
                hooks_output(),
            ],
            hidden=[io.Hidden.unique_id],
            **SAYS,
        )

    @classmethod
    def execute(
        cls,
        stack: Any,
        method: MethodChoice | None = None,
        model: Any = None,
        clip: Any = None,
        recording: RecordedLoras | None = None,
        auto_strength: bool | None = None,
        speed_loras: str | None = None,
        rank: int | None = None,
        seed: int | None = None,
        dtype: str | None = None,
        device: str | None = None,
    ) -> io.NodeOutput:
        """Merge."""
        status = StatusLine(cls)
        entries = read_stack(stack)
        if not entries:
            raise ParameterError("no LoRA in the stack is switched on; add a line such as <lora:name:1>")
        chosen = method or MethodChoice()
        asked = chosen.override(rank=rank, seed=seed).with_speed(speed_loras)
        entries = change_entries(entries, asked.settings)
        if not entries or asked.strength == 0:  # where a sweep passes zero
            text = f"{chosen.label}: nothing is merged"
            return io.NodeOutput(MergedLoraModel(None), text, make_hooks(), ui=Said(text))
        refuse_without_recording(recording, asked, bool(auto_strength))
        asked = replace(asked, keywords=asked.keywords | {"dtype": DTYPES[dtype or "float32"]})
        how: dict[str, Any] = {"on_cpu": device == "cpu", "show_progress": status.show_progress}
        if has_steps(entries) and model is not None:
            refuse_recording(recording)
            over, note = merge_over_time(entries, asked, model, clip, **how)
            lines = over.describe(status.seconds, chosen.label)
            return _output(over.lora_model(), over.hooks(), lines, over.list_notes(note))
        if recording is not None:
            fitted: FittedLoras | None = recording.fitted
            merged, note = merge_recorded(recording, entries, asked, bool(auto_strength), **how)
        else:
            loras = [entry.lora for entry in entries]
            fitted = fit_to_model(loras, model, clip) if model is not None or clip is not None else None
            merged, note = run_merge(
                fitted.loras if fitted else loras, entries, asked.keywords, asked.strength, **how
            )
        lines = [describe_merge(merged, status.seconds, chosen.label), *list_blocks(merged)]
        warnings = [*list_notes(merged, fitted, note), *list_ignored_steps(entries, "; hooks need model")]
        stems = fitted.stems if fitted else None
        hook = MergeHook.of(merged, fitted.unet, fitted.clip) if fitted and model is not None else MergeHook()
        return _output(MergedLoraModel(merged, stems), make_hooks(hook), lines, warnings)


def _output(lora: MergedLoraModel, hooks: Any, lines: list[str], warnings: list[str]) -> io.NodeOutput:
    text = "\n".join(lines)
    return io.NodeOutput(lora, "\n".join([text, *warnings]), hooks, ui=Said(text, warnings))
