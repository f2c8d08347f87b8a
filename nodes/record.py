"""Record LoRAs: what each LoRA does to this model, for measuring, calibrating and distilling merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.samplers
from comfy_api.latest import io

from ..merge_ops.errors import ParameterError, did_you_mean
from .inputs import CATEGORY, COMMUNITY_STACK, RECORDING, STACK, lora_list, model_low_input
from .model.files.stacks import check_list, list_patterns, read_file_states, read_list, read_stack
from .model.learning.sampling import SWITCH, Sampling
from .status import SAYS, Said, StatusLine
from .values.prompts import split_prompts
from .values.stack_entries import list_ignored_steps

if TYPE_CHECKING:
    from .model.learning.recorded import RecordedLoras

_SAMPLING = ("width", "height", "steps", "cfg", "sampler_name", "scheduler", "seed")
_KNOWN = ("stack", "keep", "together", "negative", *_SAMPLING, "model_low", "switch")


class LoraAlloyRecord(io.ComfyNode):
    """Samples with each LoRA alone, and keeps what the diffusion model answered."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyRecord",
            display_name="Record LoRAs",
            category=CATEGORY,
            description=(
                "Sample a few images with each LoRA alone and record what the model does. From the "
                "recording, other nodes measure what a merge keeps of each LoRA, and make merges that keep "
                "more."
            ),
            search_aliases=["calibrate lora", "distill lora", "lora interference"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that the LoRAs are for."),
                io.Clip.Input("clip", tooltip="The text encoder, for the prompts. It is recorded too if the "
                                              "LoRAs change it."),
                lora_list(),
                io.MultiType.Input(
                    "stack", types=[STACK, COMMUNITY_STACK], optional=True,
                    tooltip="More LoRAs. They come before the list; those of other packs need trigger words "
                            "in their files, since only our list has prompts.",
                ),
                *_prompt_inputs(),
                *_sampling_inputs(),
                model_low_input(),
                io.Float.Input(
                    "switch", default=SWITCH, min=0, max=1, step=0.05, optional=True, advanced=True,
                    tooltip="Share of the steps that model samples before model_low goes on, as you split "
                            "them.",
                ),
            ],
            outputs=[
                RECORDING.Output(
                    display_name="recording",
                    tooltip="The recording, for Measure Merge, Distill LoRAs and Merge LoRAs.",
                ),
                io.String.Output(display_name="report", tooltip="What was recorded."),
            ],
            hidden=[io.Hidden.unique_id],
            accept_all_inputs=True,
            **SAYS,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, loras: str | None = None) -> bool | str:
        """Refuse a list that cannot be read, or a file that is not there."""
        return check_list(loras)

    @classmethod
    def fingerprint_inputs(cls, loras: str | None = None, **_: Any) -> list[tuple[str, int, int]]:
        """A file that changed under its name is recorded again."""
        return read_file_states(loras)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        loras: str,
        stack: Any = None,
        keep: str | None = None,
        together: str | None = None,
        negative: str | None = None,
        sampler_name: str | None = None,
        model_low: Any = None,
        switch: float | None = None,
        **given: Any,
    ) -> io.NodeOutput:
        """Sample and record."""
        from .model.learning.recorded import Plan, record_loras, refuse_empty
        from .model.learning.recorded_pair import record_for_models
        from .model.patches.hooks import refuse_carrying
        from .values.sides import list_doubts, refuse_low

        for name in given:
            if name not in _SAMPLING:
                raise ParameterError(f"unknown input {name!r}{did_you_mean(name, _KNOWN)}")
        status = StatusLine(cls)
        for part in (model, model_low):
            refuse_carrying(part, "recording")
        entries = read_stack(stack) + read_list(loras or "")
        refuse_empty(entries)
        chosen = {name: value for name, value in given.items() if value is not None}
        if sampler_name is not None:
            chosen["sampler"] = sampler_name
        wanted = ("", *split_prompts(keep)), split_prompts(together) or None
        plan = Plan(Sampling(**chosen), *wanted, negative or "", status.show_progress)
        doubts: list[str] = []
        if model_low is None:
            refuse_low(entries)
            recorded = record_loras(model, clip, entries, plan)
        else:
            doubts = list_doubts(entries)
            share = SWITCH if switch is None else switch
            recorded = record_for_models(model, model_low, clip, entries, plan, share)
        text = "\n".join([*_report(recorded, status.seconds, model_low is not None), *list_patterns(loras)])
        warnings = [f"{lora.name}: {told}" for lora in recorded.all_loras for told in lora.warnings]
        warnings = list(dict.fromkeys([*warnings, *list_ignored_steps(entries), *doubts]))
        return io.NodeOutput(recorded, "\n".join([text, *warnings]), ui=Said(text, warnings))


def _report(recorded: RecordedLoras, seconds: float, of_pair: bool) -> list[str]:
    if not of_pair:
        first, *lines = _describe(recorded)
        return [f"{first}, {seconds:.1f} s", *lines]
    low = _describe(recorded.low) if recorded.low is not None else ["no LoRA"]
    return [
        f"two models, {seconds:.1f} s",
        "high-noise model:",
        *_describe(recorded),
        "low-noise model:",
        *low,
    ]


def _describe(recorded: RecordedLoras) -> list[str]:
    recording = recorded.recording
    count, size = len(recording.samples), recording.size / 1e6
    lines = [f"{count} calls of {', '.join(recorded.host.modules)}, {size:.0f} MB"]
    for label, lora in zip(recording.labels, recording.loras, strict=True):
        lines.append(f"{label} at {lora.weight:g}: {' | '.join(lora.prompts)}")
    lines.append(f"to keep: {' | '.join(prompt or '(empty)' for prompt in recording.keep_prompts)}")
    if recording.together_prompts:
        lines.append(f"together: {' | '.join(recording.together_prompts)}")
    return lines


def _prompt_inputs() -> list[io.Input]:
    shared: dict[str, Any] = {"optional": True, "default": "", "multiline": True}
    return [
        io.String.Input(
            "keep", placeholder="prompts whose images must stay as they are", tooltip=(
                "Prompts that the merge must not change, one on each line. The empty prompt is always one "
                "of them."
            ), **shared,
        ),
        io.String.Input(
            "together", placeholder="prompts that name several LoRAs; empty joins them in pairs", tooltip=(
                "Prompts that use several LoRAs at once, one on each line. Left empty, the prompts of each "
                "two LoRAs are joined."
            ), **shared,
        ),
        io.String.Input(
            "negative", optional=True, default="", advanced=True,
            tooltip="The negative prompt while recording. It has no effect at cfg 1.",
        ),
    ]  # fmt: skip


def _sampling_inputs() -> list[io.Input]:
    default = Sampling()
    size: dict[str, Any] = {"min": 16, "max": 16384, "step": 8, "optional": True}
    return [
        io.Int.Input("width", default=default.width, tooltip="Width of the recorded images in pixels.",
                     **size),
        io.Int.Input("height", default=default.height, tooltip="Height of the recorded images in pixels.",
                     **size),
        io.Int.Input("steps", default=default.steps, min=2, max=1000, optional=True,
                     tooltip="Sampling steps for each prompt. Eight are enough to record."),
        io.Float.Input("cfg", default=default.cfg, min=0, max=100, step=0.1, optional=True,
                       tooltip="Guidance, as you sample with. Use 1 for models such as Flux or Turbo."),
        io.Combo.Input("sampler_name", options=list(comfy.samplers.KSampler.SAMPLERS), optional=True,
                       default=default.sampler, tooltip="The sampler, as you sample with."),
        io.Combo.Input("scheduler", options=list(comfy.samplers.KSampler.SCHEDULERS), optional=True,
                       default=default.scheduler, tooltip="The scheduler, as you sample with."),
        io.Int.Input("seed", default=0, min=0, max=2**53, optional=True, control_after_generate="fixed",
                     tooltip="Seed of the noise, and of which calls are kept for measuring. The same seed "
                             "gives the same recording."),
    ]  # fmt: skip
