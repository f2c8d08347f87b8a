"""Measure Merge: how much of each LoRA a merge keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..merge_ops.errors import MergeError, ParameterError
from ..merge_ops.methods.registry import get_method
from .inputs import CATEGORY, LORA_MODEL, METHOD, RECORDING, theme_input
from .model.queued import sent_inputs
from .status import Said, StatusLine
from .values.keywords import MethodChoice
from .values.learning_pictures import Kept, draw_bars, percent
from .values.sweep_values import read_sweep

if TYPE_CHECKING:
    from ..merge_ops.learning import Retention
    from .model.learning.host import Applied
    from .model.learning.recorded import RecordedLoras

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
                LORA_MODEL.Input(
                    "lora_low", optional=True,
                    tooltip="A merge for the low-noise model, where the recording is of two models.",
                ),
                io.Model.Input(
                    "model_low", optional=True,
                    tooltip="The low-noise model, patched already, to measure as it is.",
                ),
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
        lora_low: dict[str, Any] | None = None,
        model_low: Any = None,
    ) -> io.NodeOutput:
        """Measure, and draw."""
        from .model.patches.hooks import refuse_carrying

        status = StatusLine(cls)
        for part in (model, model_low):
            refuse_carrying(part, "measuring")
        if model is None and clip is not None:
            raise ParameterError("connect MODEL as well: CLIP alone is not measured")
        if recording.low is None and (lora_low is not None or model_low is not None):
            raise ParameterError("the recording is of one model: disconnect lora_low and model_low")
        asked = _read_lists(methods, strengths)
        given = [_Given(recording, lora, model, clip), _Given(recording.low, lora_low, model_low, clip)]
        sides = [
            _measure(each, each.recording, asked, status) for each in given if each.recording is not None
        ]
        if len(sides) == 1:
            text, data = _report(sides[0]), {row.title: _as_json(row.retention) for row in sides[0]}
        else:
            text, data = _report_both(sides), _json_of_both(sides)
        pictures = [
            draw_bars([Kept(row.title, row.retention.loras) for row in rows], theme or "light")
            for rows in sides
        ]
        image = torch.from_numpy(np.concatenate([np.asarray(each, dtype=np.float32) for each in pictures]))
        image = image[None] / 255
        said = ui.PreviewImage(image, cls=cls).as_dict() | Said(text).as_dict()
        return io.NodeOutput(text, json.dumps(data, indent=2), image, _best(sides)[0].choice, ui=said)


class _Given(NamedTuple):
    """What is measured with one model, besides the methods."""

    recording: RecordedLoras | None
    lora: dict[str, Any] | None
    model: Any
    clip: Any


def _measure(
    given: _Given, recorded: RecordedLoras, asked: tuple[list[str], list[float]], status: StatusLine
) -> list[_Row]:
    from .model.learning.host import Applied

    rows = _measure_list(recorded, *asked, status)
    if given.lora is not None:
        rows.append(_Row("the merged LoRA", recorded.measure(_with_lora(recorded, given.lora))))
    if given.model is not None:
        rows.append(_Row("the model", recorded.measure(Applied(given.model, given.clip))))
    return rows


def _best(sides: Sequence[list[_Row]]) -> tuple[_Row, float]:
    """The merge of the list that keeps most on average over the models, and how much."""
    listed = [rows for rows in zip(*sides, strict=False) if rows[0].choice is not None]
    means = [sum(row.retention.mean for row in rows) / len(rows) for rows in listed]
    place = max(range(len(listed)), key=means.__getitem__)
    return listed[place][0], means[place]


def _report_both(sides: Sequence[list[_Row]]) -> str:
    from .model.learning.recorded import TITLES

    lines = []
    for title, rows in zip(TITLES, sides, strict=True):
        lines += [f"{title}:", *_lines(rows)]
    best, mean = _best(sides)
    lines.append(f"Best of the list for both: {best.title}, which keeps {percent(mean)} on average")
    return "\n".join([*lines, ROUGHLY])


def _json_of_both(sides: Sequence[list[_Row]]) -> dict[str, Any]:
    return {
        side: {row.title: _as_json(row.retention) for row in rows}
        for side, rows in zip(("high", "low"), sides, strict=True)
    }


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
    from .model.learning.host import Applied
    from .model.merges.lora_model import read_lora_model
    from .model.patches.clones import fit_and_patch_clones

    merged = read_lora_model(lora).merged
    if merged is None:
        return Applied(recorded.host.model, recorded.host.clip)
    patched = fit_and_patch_clones(merged, recorded.host.model, recorded.host.clip)
    return Applied(patched.model, patched.clip)


def _report(rows: list[_Row]) -> str:
    lines = _lines(rows)
    if len(rows) > 1:
        lines.append(f"Best of the list: {_best([rows])[0].title}")
    return "\n".join([*lines, ROUGHLY])


def _lines(rows: list[_Row]) -> list[str]:
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
    return lines


def _as_json(retention: Retention) -> dict[str, Any]:
    return {
        "mean": retention.mean, "worst": retention.worst, "loras": retention.loras, "keep": retention.keep,
        "together": retention.together, "modules": retention.modules,
    }  # fmt: skip
