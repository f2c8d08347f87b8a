"""Apply Merged LoRA: patch MODEL and CLIP with a LORA_MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..merge_ops.errors import ParameterError
from .inputs import CATEGORY, LORA_MODEL, patching_input
from .status import SAYS, Said, StatusLine
from .values.keywords import read_patching


class LoraAlloyApply(io.ComfyNode):
    """Patches a model and a text encoder, each at its own strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        strength: dict[str, Any] = {"default": 1.0, "min": -100, "max": 100, "step": 0.01}
        return io.Schema(
            node_id="LoraAlloyApply",
            display_name="Apply Merged LoRA",
            category=CATEGORY,
            description="Apply a merged LoRA to a model and its text encoder. A full-rank merge is "
            "applied exactly, without truncation.",
            search_aliases=["apply lora", "apply merge"],
            inputs=[
                LORA_MODEL.Input(
                    "lora",
                    tooltip="The LoRA to apply, from a merge node or any other node that outputs LORA_MODEL.",
                ),
                io.Float.Input(
                    "strength_model",
                    tooltip="Strength of the whole merge in the diffusion model. "
                    "The LoRAs' own strengths are already part of the "
                    "merge.",
                    **strength,
                ),
                io.Float.Input(
                    "strength_clip",
                    tooltip="Strength of the whole merge in the text encoder. The "
                    "LoRAs' own strengths are already part of the merge.",
                    **strength,
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model to patch. Without it, only CLIP is patched.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder to patch. Without it, only the model is patched.",
                ),
                patching_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The patched model."),
                io.Clip.Output(display_name="clip", tooltip="The patched text encoder."),
            ],
            hidden=[io.Hidden.unique_id],
            **SAYS,
        )

    @classmethod
    def execute(
        cls,
        lora: dict[str, Any],
        strength_model: float,
        strength_clip: float,
        model: Any = None,
        clip: Any = None,
        patching: str | None = None,
    ) -> io.NodeOutput:
        """Patch clones."""
        from .model.merges.lora_model import read_lora_model
        from .model.merges.summary import describe_merge, list_blocks, list_left_out, list_not_applied
        from .model.patches.clones import fit_and_patch_clones

        if model is None and clip is None:
            raise ParameterError("there is nothing to patch: connect MODEL, CLIP, or both")
        chosen = read_patching(patching)
        status = StatusLine(cls)
        whole = read_lora_model(lora)
        merged = whole.merged
        if merged is None or (strength_model == 0 and strength_clip == 0):
            why = "No LoRA was merged" if merged is None else "Both strengths are 0"
            return io.NodeOutput(model, clip, ui=Said(f"{why}: model and CLIP are unchanged."))
        patched = fit_and_patch_clones(merged, model, clip, strength_model, strength_clip, chosen)
        fitted = patched.fitted
        text = f"{len(fitted.unet)} weights of the model and {len(fitted.clip)} of the text encoder"
        text = f"{describe_merge(merged)}, on {text}, {status.seconds:.1f} s"
        lines = [
            *whole.notes,
            *list_left_out(merged, fitted),
            *list_not_applied(merged, model, clip),
            *patched.lines,
        ]
        text = "\n".join([text, *patched.how, *list_blocks(merged)])
        return io.NodeOutput(patched.model, patched.clip, ui=Said(text, lines))
