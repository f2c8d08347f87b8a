"""Extract LoRA: the difference of two models as a LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..merge_ops.errors import ParameterError, did_you_mean
from ..merge_ops.extracting.options import RANK, ExtractOptions
from .inputs import CATEGORY, LORA_MODEL
from .status import SAYS, Said, StatusLine

if TYPE_CHECKING:
    from ..merge_ops.extracting import Extracted

_OPTIONS = ("rank", "energy", "conv_rank", "min_diff", "clamp", "vectors")
_KNOWN = (*_OPTIONS, "tuned_clip", "base_clip")


class LoraAlloyExtract(io.ComfyNode):
    """Reads both models as they are patched; neither is loaded or changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyExtract",
            display_name="Extract LoRA",
            category=CATEGORY,
            description=(
                "Extract a LoRA from a tuned model and its base: what the tuned model has learned, for use "
                "with any model of the same kind. Says how much of the difference the LoRA holds."
            ),
            search_aliases=["extract lora", "lora from checkpoint", "checkpoint difference", "model to lora"],
            inputs=[
                io.Model.Input("tuned", tooltip="The tuned model, with the LoRAs and merges that are on it."),
                io.Model.Input("base", tooltip="What it was tuned from: a model of the same kind."),
                io.Int.Input(
                    "rank", default=RANK, min=1, max=4096, optional=True,
                    tooltip="Rank of every layer. With energy, the largest rank that a layer may get.",
                ),
                io.Float.Input(
                    "energy", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="Share of each layer's difference to hold: each gets the smallest rank that "
                            "does, up to rank. 0 gives every layer the same rank.",
                ),
                io.Clip.Input(
                    "tuned_clip", optional=True,
                    tooltip="The text encoder of the tuned model, if the LoRA is to have it too.",
                ),
                io.Clip.Input("base_clip", optional=True, tooltip="The text encoder of the base."),
                io.Boolean.Input(
                    "vectors", default=True, optional=True, advanced=True,
                    tooltip="Also store differences of biases and norms, which ComfyUI reads and many other "
                            "programs do not.",
                ),
                io.Int.Input(
                    "conv_rank", default=0, min=0, max=4096, optional=True, advanced=True,
                    tooltip="Rank of convolutions with kernels larger than 1. 0 uses rank.",
                ),
                io.Float.Input(
                    "min_diff", default=0.0, min=0.0, max=1.0, step=0.0001, round=False, optional=True,
                    advanced=True,
                    tooltip="Leave out weights none of whose entries differ by more than this.",
                ),
                io.Float.Input(
                    "clamp", default=0.0, min=0.0, max=1.0, step=0.001, round=False, optional=True,
                    advanced=True,
                    tooltip="Clip the entries of both factors at this quantile, as kohya's scripts do with "
                            "0.99. 0 clips nothing.",
                ),
            ],
            outputs=[
                LORA_MODEL.Output(display_name="lora", tooltip="The LoRA, for Save LoRA and others."),
                io.String.Output(display_name="report", tooltip="What the LoRA holds, and what it does not."),
            ],
            hidden=[io.Hidden.unique_id],
            accept_all_inputs=True,
            **SAYS,
        )  # fmt: skip

    @classmethod
    def execute(cls, tuned: Any, base: Any, **given: Any) -> io.NodeOutput:
        """Extract and report."""
        from .model.merges.lora_model import MergedLoraModel
        from .model.places.whole_models import choose_stems, extract_with_comfyui, read_whole_model

        for name in given:
            if name not in _KNOWN:
                raise ParameterError(f"unknown input {name!r}{did_you_mean(name, _KNOWN)}")
        clips = given.get("tuned_clip"), given.get("base_clip")
        if (clips[0] is None) != (clips[1] is None):
            raise ParameterError("connect the text encoders of both models, or of neither")
        options = {name: value for name in _OPTIONS if (value := given.get(name)) is not None}
        # 0 stands for not given
        options = {
            name: value for name, value in options.items() if value != 0 or name in ("rank", "vectors")
        }
        checked = ExtractOptions(**{"rank": RANK, **options}).to_dict()
        status, bar = StatusLine(cls), comfy.utils.ProgressBar(1)

        def progress(done: int, total: int, _weight: str) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)
            status.show_progress(f"{done} of {total} weights")

        extracted, note = extract_with_comfyui(
            read_whole_model("tuned", tuned, clips[0]), read_whole_model("base", base, clips[1]), progress,
            **checked,
        )  # fmt: skip
        lora = MergedLoraModel(extracted, choose_stems(extracted, tuned, clips[0]))
        text, warnings = _report(extracted, status.seconds)
        warnings += [note] if note else []
        return io.NodeOutput(lora, "\n".join([text, *warnings]), ui=Said(text, warnings))


def _report(extracted: Extracted, seconds: float) -> tuple[str, list[str]]:
    """What the LoRA holds, and what a user should know of it."""
    from ..merge_ops.saving.kept import kept_by_extraction

    low, high = extracted.found.ranks
    ranks = (
        "biases and norms only" if not high else f"rank {low}" if low == high else f"ranks {low} to {high}"
    )
    kept = kept_by_extraction(extracted)
    lines = [f"extracted {len(extracted.layers)} layers, {ranks}, {seconds:.1f} s"]
    warnings = list(extracted.outline.warnings)
    (warnings if kept.is_low else lines).append(kept.sentence())
    return "\n".join([*lines, *extracted.found.lines()]), warnings
