"""Merge LoRAs: a stack becomes one LoRA."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
    hooks_low_output,
    hooks_output,
    lora_low_output,
    model_low_input,
    recording_input,
    result_inputs,
    speed_loras_input,
)
from .model.files.stacks import read_stack
from .status import SAYS, Said, StatusLine
from .values.keywords import MethodChoice
from .values.stack_entries import change_entries

if TYPE_CHECKING:
    from .model.learning.recorded import RecordedLoras


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
                model_low_input(),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="The merged LoRA, to apply or save."),
                io.String.Output(display_name="report", tooltip="What was merged and what was left out."),
                hooks_output(),
                lora_low_output(),
                hooks_low_output(),
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
        model_low: Any = None,
    ) -> io.NodeOutput:
        """Merge."""
        from .model.jobs.one_model import Job, Made
        from .model.jobs.two_models import Outputs, merge_for_models
        from .model.learning.recorded import refuse_without_recording

        status = StatusLine(cls)
        entries = read_stack(stack)
        if not entries:
            raise ParameterError("no LoRA in the stack is switched on; add a line such as <lora:name:1>")
        chosen = method or MethodChoice()
        asked = chosen.override(rank=rank, seed=seed).with_speed(speed_loras)
        entries = change_entries(entries, asked.settings)
        if not entries or asked.strength == 0:  # where a sweep passes zero
            text = f"{chosen.label}: nothing is merged"
            made = Outputs(Made.nothing(), Made.nothing(), None, [text], [])
        else:
            refuse_without_recording(recording, asked, bool(auto_strength))
            asked = replace(asked, keywords=asked.keywords | {"dtype": DTYPES[dtype or "float32"]})
            job = Job(
                asked, lambda: status.seconds, status.show_progress, chosen.label, bool(auto_strength),
                on_cpu=device == "cpu",
            )  # fmt: skip
            made = merge_for_models(entries, model, model_low, clip, recording, job)
        said = Said("\n".join(made.lines), made.warnings)
        report = "\n".join([*made.lines, *made.warnings])
        high, low = made.high, made.low
        return io.NodeOutput(high.lora, report, high.hooks, low.lora, low.hooks, ui=said)
