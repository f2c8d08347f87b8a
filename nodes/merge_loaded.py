"""Merge Loaded LoRAs: what other loaders put on MODEL and CLIP, merged by a method."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .inputs import CATEGORY, LORA_MODEL, METHOD, STACK, method_input, result_inputs, space_input
from .model.queued import check_method, known_inputs
from .status import SAYS, Said, StatusLine
from .values.keywords import MethodChoice, refuse_unknown


class LoraAlloyMergeLoaded(io.ComfyNode):
    """Reads the LoRAs off the patches of MODEL and CLIP, merges them, and puts the merge in their place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyMergeLoaded",
            display_name="Merge Loaded LoRAs",
            category=CATEGORY,
            description=(
                "Merge the LoRAs that any loaders have put on the model and CLIP with the chosen method. "
                "linear changes nothing. To save what is on a model as one LoRA, connect lora to Save LoRA."
            ),
            search_aliases=["merge loaded loras", "merge lora chain", "save loaded loras", "loras on model"],
            inputs=[
                io.Model.Input("model", tooltip="The model with LoRAs on it, from the last LoRA loader."),
                method_input(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP from the last LoRA loader. Without it, only the model's LoRAs are "
                    "merged.",
                ),
                METHOD.Input(
                    "sweep",
                    optional=True,
                    tooltip=(
                        "Connect Sweep Parameter to run this node once for each value, or Merge Method. "
                        "It overrides the widgets."
                    ),
                ),
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
                    tooltip="Strength of the whole merge: multiplies the strength of every LoRA.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the merge."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the merge."),
                LORA_MODEL.Output(
                    display_name="lora",
                    tooltip="The LoRAs of the model as one, for Save LoRA or Apply Merged LoRA.",
                ),
                STACK.Output(
                    display_name="stack",
                    tooltip="The LoRAs that were found and their strengths, for Inspect LoRAs.",
                ),
                io.String.Output(
                    display_name="report", tooltip="What was found and merged, and what stayed as it was."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            accept_all_inputs=True,
            **SAYS,
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, method: dict[str, Any] | str | None = None) -> bool | str:
        """Refuse a misspelled method or parameter at queue time."""
        return check_method(cls, method)

    @classmethod
    def execute(
        cls,
        model: Any,
        method: Any = None,
        clip: Any = None,
        sweep: MethodChoice | None = None,
        space: str | None = None,
        rank: int | None = None,
        seed: int | None = None,
        strength: float | None = None,
        **unknown: Any,
    ) -> io.NodeOutput:
        """Read, merge, and put in place."""
        from .model.loaded.files import read_named
        from .model.loaded.loaded import describe_unmerged, list_found, list_stayed, merge_loaded, read_loaded
        from .model.merges.lora_model import MergedLoraModel
        from .model.merges.summary import describe_merge, list_notes

        status = StatusLine(cls)
        refuse_unknown(unknown, known_inputs(cls), method)
        chosen = sweep or MethodChoice()
        asked = chosen.override(method, strength, space=space, rank=rank, seed=seed)
        hidden = cls.hidden
        named = read_named(getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None))
        loaded = read_loaded(model, clip, named)
        stayed = list_stayed(loaded)
        made = merge_loaded(loaded, asked, status.show_progress)
        if made.fitted is None or made.merged is None:
            text = describe_unmerged(loaded, chosen.label)
            report, stack = "\n".join([text, *stayed]), tuple(loaded.entries)
            return io.NodeOutput(
                made.model, made.clip, MergedLoraModel(None), stack, report, ui=Said(text, stayed)
            )
        text = "\n".join([describe_merge(made.merged, status.seconds, chosen.label), *list_found(loaded)])
        warnings = [*list_notes(made.merged, made.fitted, made.note), *stayed]
        return io.NodeOutput(
            made.model,
            made.clip,
            MergedLoraModel(made.merged, made.fitted.stems),
            tuple(loaded.entries),
            "\n".join([text, *warnings]),
            ui=Said(text, warnings),
        )
