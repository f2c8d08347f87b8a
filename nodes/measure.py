"""Measure Merge: how much of each LoRA a merge keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..merge_ops.errors import MergeError, ParameterError
from ..merge_ops.learning import Retention
from ..merge_ops.methods.registry import get_method
from .inputs import CATEGORY, LORA_MODEL, METHOD, RECORDING, theme_input
from .model.clones import fit_and_patch_clones
from .model.hooks import refuse_carrying
from .model.learning_host import Applied
from .model.lora_model import read_lora_model
from .model.queued import sent_inputs
from .model.recorded import RecordedLoras
from .status import Said, StatusLine
from .values.keywords import MethodChoice
from .values.learning_pictures import Kept, draw_bars, percent
from .values.sweep_values import read_sweep

ROUGHLY = (
    "It is measured on calls that were held out, and ranks settings of one set of LoRAs only roughly: look "
    "at images before you decide between close ones."
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A merge that was measured; ``choice`` is how to make it again, if it is a method at a strength."""

    title: str
    retention: Retention
    choice: MethodChoice | None = None


class LoraAlloyMeasure(io.ComfyNode):
    """Replays the held-out calls of a recording with merges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyMeasure",
            display_name="Measure Merge",
            category=CATEGORY,
            description=(
                "Measure how much of each recorded LoRA a merge keeps, beside linear: of a merged LoRA, of a "
                "patched model, or of a list of methods and strengths. " + ROUGHLY
            ),
            search_aliases=["retention", "lora interference", "compare loras"],
            inputs=[
                RECORDING.Input("recording", tooltip="What the LoRAs do, from Record LoRAs."),
                LORA_MODEL.Input("lora", optional=True, tooltip="A merge of the recorded LoRAs to measure."),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="A model that is patched already, to measure as it is.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder of the model input."),
                io.String.Input(
                    "methods", default="linear", optional=True,
                    tooltip="Methods to compare, such as linear, even, calibrated. Every method is measured "
                            "at every strength.",
                ),
                io.String.Input(
                    "strengths", default="1", optional=True,
                    tooltip="Strengths of the whole merge, such as 0.8, 1, 1.2 or 0.7..1.3 step 0.3.",
                ),
                theme_input(),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="What each merge keeps, as text."),
                io.String.Output(display_name="json", tooltip="All figures as JSON."),
                io.Image.Output(display_name="image", tooltip="The bars shown on the node."),
                METHOD.Output(
                    display_name="best",
                    tooltip="The method and strength of the list that keep most on average, for Merge LoRAs.",
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, methods: str | None = None) -> bool | str:
        """Refuse a method that there is not, and a list that cannot be read."""
        try:
            _read_lists(methods, sent_inputs(cls).get("strengths"))
        except MergeError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        recording: RecordedLoras,
        lora: dict[str, Any] | None = None,
        model: Any = None,
        clip: Any = None,
        methods: str | None = None,
        strengths: str | None = None,
        theme: str | None = None,
    ) -> io.NodeOutput:
        """Measure, and draw."""
        status = StatusLine(cls)
        refuse_carrying(model, "measuring")
        rows = _measure_list(recording, *_read_lists(methods, strengths), status)
        if lora is not None:
            rows.append(_Row("the merged LoRA", recording.measure(_with_lora(recording, lora))))
        if model is not None:
            rows.append(_Row("the model", recording.measure(Applied(model, clip))))
        elif clip is not None:
            raise ParameterError("connect MODEL as well: CLIP alone is not measured")
        listed = [row for row in rows if row.choice is not None]
        best = max(listed, key=lambda row: row.retention.mean)
        text = _report(rows, best)
        data = {row.title: _as_json(row.retention) for row in rows}
        picture = draw_bars([Kept(row.title, row.retention.loras) for row in rows], theme or "light")
        image = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
        said = ui.PreviewImage(image, cls=cls).as_dict() | Said(text).as_dict()
        return io.NodeOutput(text, json.dumps(data, indent=2), image, best.choice, ui=said)


def _read_lists(methods: str | None, strengths: str | None) -> tuple[list[str], list[float]]:
    names = read_sweep("method", methods or "linear")[1]
    if "peft" in names:
        raise ParameterError(
            "PEFT's combination types are not measured in a list; connect their merge as lora"
        )
    return names, read_sweep("strength", strengths or "1")[1]


def _measure_list(
    recorded: RecordedLoras, methods: list[str], strengths: list[float], status: StatusLine
) -> list[_Row]:
    """Every method at every strength, and linear at 1 first."""
    asked = dict.fromkeys([("linear", 1.0), *((name, float(s)) for name in methods for s in strengths)])
    moments = recorded.moments() if any(get_method(name).needs_recording for name, _ in asked) else None
    rows = []
    for number, (name, strength) in enumerate(asked):
        title = name if strength == 1 else f"{name} at {strength:g}"
        status.show_progress(f"measuring {title}, {number + 1} of {len(asked)}")
        swept = () if strength == 1 else (("strength", strength),)
        choice = MethodChoice({"method": name}, swept=swept)
        rows.append(_Row(title, recorded.measure(recorded.merge(name, strength, moments)), choice))
    return rows


def _with_lora(recorded: RecordedLoras, lora: dict[str, Any]) -> Applied:
    merged = read_lora_model(lora).merged
    if merged is None:
        return Applied(recorded.host.model, recorded.host.clip)
    patched = fit_and_patch_clones(merged, recorded.host.model, recorded.host.clip)
    return Applied(patched.model, patched.clip)


def _report(rows: list[_Row], best: _Row) -> str:
    lines = []
    for row in rows:
        shares = ", ".join(f"{name} {percent(share)}" for name, share in row.retention.loras.items())
        lines.append(
            f"{row.title} keeps {percent(row.retention.mean)} "
            f"(worst {percent(row.retention.worst)}): {shares}"
        )
        others = [
            f"{module} {percent(min(own.values()))}"
            for module, own in list(row.retention.modules.items())[1:]
        ]
        if others:
            lines.append(f"  worst LoRA in text encoders: {', '.join(others)}")
        if row.retention.keep is not None:
            lines.append(
                f"  changes the prompts to keep by {percent(row.retention.keep)} of what a LoRA changes"
            )
    if len(rows) > 1:
        lines.append(f"Best of the list: {best.title}")
    return "\n".join([*lines, ROUGHLY])


def _as_json(retention: Retention) -> dict[str, Any]:
    return {
        "mean": retention.mean, "worst": retention.worst, "loras": retention.loras, "keep": retention.keep,
        "together": retention.together, "modules": retention.modules,
    }  # fmt: skip
