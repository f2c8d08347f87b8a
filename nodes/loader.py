"""Load & Merge LoRAs: the one node that most people need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..merge_ops.errors import MergeError
from .inputs import (
    CATEGORY,
    COMMUNITY_STACK,
    LORA_MODEL,
    METHOD,
    STACK,
    auto_strength_input,
    hooks_low_output,
    hooks_output,
    lora_list,
    lora_low_output,
    method_input,
    model_low_input,
    patching_input,
    recording_input,
    result_inputs,
    space_input,
    speed_loras_input,
    trigger_words_output,
)
from .model.files.lora_files import list_lora_files
from .model.files.stacks import check_list, list_patterns, read_file_states, read_list, read_stack
from .model.queued import known_inputs, sent_inputs
from .status import SAYS, Said, StatusLine
from .values.keywords import MethodChoice, check_sent, read_patching, refuse_unknown
from .values.stack_entries import change_entries

if TYPE_CHECKING:
    from .model.learning.recorded import RecordedLoras

# what people type who look for what this node does; the helper nodes have words of their own
SEARCH_WORDS = [
    "lora", "lora loader", "load lora", "power lora", "power lora loader", "multi lora", "multiple loras",
    "lora merge", "merge lora", "merge loras", "combine loras", "lora mixer", "lora stack", "lora manager",
    "ties", "dare", "block weight", "lora block weight",
]  # fmt: skip


class LoraAlloyLoader(io.ComfyNode):
    """Reads the LoRAs of a list, merges them, and patches MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyLoader",
            display_name="Load & Merge LoRAs",
            category=CATEGORY,
            description=(
                "Load any number of LoRAs, merge them with the chosen method, and apply the result to"
                " the model and CLIP. linear gives the same result as a chain of Load LoRA nodes."
            ),
            search_aliases=SEARCH_WORDS,
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to patch."),
                lora_list(list_lora_files()),
                method_input(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder to patch. Without it, only the model is patched.",
                ),
                io.MultiType.Input(
                    "stack",
                    types=[STACK, COMMUNITY_STACK],
                    optional=True,
                    tooltip="More LoRAs, from LoRA Stack or from a stack node of another pack. They "
                    "come before the list.",
                ),
                METHOD.Input(
                    "sweep",
                    optional=True,
                    tooltip=(
                        "Connect Sweep Parameter to run this node once for each value. The value "
                        "overrides the widget it belongs to."
                    ),
                ),
                recording_input(),
                space_input(),
                *result_inputs(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100,
                    max=100,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Strength of the whole merge: multiplies the strength of every LoRA. Raise it"
                        " if the effect is too weak."
                    ),
                ),
                auto_strength_input(),
                speed_loras_input(),
                patching_input(),
                model_low_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model."),
                io.Clip.Output(display_name="clip", tooltip="The patched text encoder."),
                LORA_MODEL.Output(
                    display_name="lora", tooltip="The merged LoRA, for Save LoRA or Apply Merged LoRA."
                ),
                STACK.Output(
                    display_name="stack",
                    tooltip=(
                        "The LoRAs that were merged and their strengths, for Inspect LoRAs or Record LoRAs."
                    ),
                ),
                trigger_words_output(),
                hooks_output(),
                io.Model.Output(
                    display_name="model_low", tooltip="The patched low-noise model, if one is connected."
                ),
                lora_low_output(),
                hooks_low_output(),
            ],
            hidden=[io.Hidden.unique_id],
            accept_all_inputs=True,
            **SAYS,
        )

    @classmethod
    def validate_inputs(cls, loras: str | None = None, *, method: Any = None) -> bool | str:
        """Refuse at queue time what cannot work: a misspelled method or parameter, a missing file.

        ComfyUI passes the dynamic input ``method`` to every validation, without values if it is not asked
        for.
        """
        try:
            check_sent(sent_inputs(cls), known_inputs(cls))
        except MergeError as error:
            return str(error)
        return check_list(loras)

    @classmethod
    def fingerprint_inputs(cls, loras: str | None = None, **_: Any) -> list[Any]:
        """A file that changed under its name is read again, and so are the notes beside it."""
        from .model.files.lora_info import read_sidecar_states

        files = read_file_states(loras)
        return [*files, *read_sidecar_states(files)]

    @classmethod
    def execute(
        cls,
        model: Any,
        loras: str,
        method: Any = None,
        clip: Any = None,
        stack: Any = None,
        sweep: MethodChoice | None = None,
        space: str | None = None,
        rank: int | None = None,
        seed: int | None = None,
        strength: float | None = None,
        recording: RecordedLoras | None = None,
        auto_strength: bool | None = None,
        speed_loras: str | None = None,
        patching: str | None = None,
        model_low: Any = None,
        **unknown: Any,
    ) -> io.NodeOutput:
        """Read, merge, patch."""
        from .model.files.lora_info import trigger_words_of
        from .model.jobs.one_model import Job, Made
        from .model.jobs.two_models import Outputs, merge_for_models
        from .model.learning.recorded import refuse_without_recording
        from .model.merges.summary import describe_nothing

        status = StatusLine(cls)
        refuse_unknown(unknown, known_inputs(cls), method)
        chosen = sweep or MethodChoice()
        asked = chosen.override(method, strength, space=space, rank=rank, seed=seed).with_speed(speed_loras)
        way = read_patching(patching)
        entries = change_entries(read_stack(stack) + read_list(loras or ""), asked.settings)
        words = trigger_words_of(entries)
        if not entries or asked.strength == 0:
            high, low = Made.nothing(model), Made.nothing(model_low)
            made = Outputs(high, low, clip, [describe_nothing(chosen.label)], [])
        else:
            refuse_without_recording(recording, asked, bool(auto_strength))
            job = Job(
                asked, lambda: status.seconds, status.show_progress, chosen.label, bool(auto_strength),
                applies=True, patching=way,
            )  # fmt: skip
            made = merge_for_models(entries, model, model_low, clip, recording, job)
        high, low = made.high, made.low
        return io.NodeOutput(
            high.model, made.clip, high.lora, tuple(entries), words, high.hooks, low.model, low.lora,
            low.hooks, ui=Said("\n".join([*made.lines, *list_patterns(loras)]), made.warnings),
        )  # fmt: skip
