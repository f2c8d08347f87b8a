"""Inspect LoRAs: what is in a stack, how its LoRAs relate, and what that means for a merge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..merge_ops.analysis.view_names import SPECTRUM, VIEWS
from ..merge_ops.errors import MergeError, ParameterError, did_you_mean
from .inputs import CATEGORY, COMMUNITY_STACK, STACK, theme_input
from .model.files.stacks import read_stack
from .status import Said

if TYPE_CHECKING:
    from ..merge_ops.analysis.study import Study

_ENERGY = 0.95
_TWO_MODELS = (
    "high-noise and low-noise LoRAs are for two models, so they are not compared with each other; a LoRA for "
    "both is compared with all"
)
_TOOLTIPS = (
    "similarity: how far the LoRAs change the model in the same direction.",
    "sign_conflict: how often one LoRA adds where another subtracts.",
    "norms: how large the change of each LoRA is.",
    "spectrum: how much of its rank each LoRA uses.",
)


class LoraAlloyInspect(io.ComfyNode):
    """Reads only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyInspect",
            display_name="Inspect LoRAs",
            category=CATEGORY,
            description=(
                "Show how the LoRAs of a stack relate to each other in each block of the model, or "
                "how much of their rank they use, with advice for merging them."
            ),
            search_aliases=["lora info", "lora similarity", "lora rank", "compare loras"],
            inputs=[
                io.MultiType.Input("stack", types=[STACK, COMMUNITY_STACK], tooltip="The LoRAs to inspect."),
                _view_input(),
                theme_input(),
            ],
            outputs=[
                io.String.Output(
                    display_name="report", tooltip="The report as text. It starts with the advice."
                ),
                io.String.Output(display_name="json", tooltip="All measurements as JSON."),
                io.Image.Output(display_name="image", tooltip="The chart shown on the node."),
            ],
            is_output_node=True,
            accept_all_inputs=True,
        )

    @classmethod
    def validate_inputs(cls, view: Any = None) -> bool | str:
        """Refuse a misspelled view."""
        try:
            _chosen(view)
        except MergeError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, stack: Any, view: Any = None, theme: str | None = None, **unknown: Any) -> io.NodeOutput:
        """Look, and draw."""
        from ..merge_ops.analysis.plots import draw
        from ..merge_ops.analysis.study import study
        from .values.sides import group_sides

        for name in unknown:
            hint = f"it belongs to view {SPECTRUM}" if name == "view.energy" else "known: stack, view, theme"
            raise ParameterError(f"unknown input {name!r}; {hint}")
        name, energy = _chosen(view)
        entries = read_stack(stack)
        if not entries:
            raise ParameterError("no LoRA in the stack is switched on; add a line such as <lora:name:1>")
        groups = group_sides(entries)
        found = study([entry.lora for entry in entries], groups)
        pixels = np.asarray(draw(found, name, energy, theme or "light"), dtype=np.float32) / 255
        image = torch.from_numpy(pixels)[None]  # (1, height, width, 3)
        told = [_TWO_MODELS] if groups else []
        said = ui.PreviewImage(image, cls=cls).as_dict() | Said("\n".join([*found.advice, *told])).as_dict()
        return io.NodeOutput(
            "\n".join([_report(found), *told]), json.dumps(found.to_dict(), indent=2), image, ui=said
        )


def _view_input() -> io.DynamicCombo.Input:
    energy = io.Float.Input(
        "energy",
        default=_ENERGY,
        min=0.5,
        max=0.999,
        step=0.005,
        optional=True,
        tooltip="The bars show the rank needed to keep this share of each block's energy.",
    )
    options = [io.DynamicCombo.Option(view, [energy] if view == SPECTRUM else []) for view in VIEWS]
    tooltip = "What the chart shows.\n" + "\n".join(_TOOLTIPS)
    return io.DynamicCombo.Input("view", options=options, optional=True, tooltip=tooltip)


def _chosen(view: dict[str, Any] | str | None) -> tuple[str | None, float]:
    """Name and energy; ComfyUI gives a dictionary, the bare name where it does not know it, or nothing."""
    given = view if isinstance(view, dict) else {"view": view}
    name, energy = given.get("view"), given.get("energy")
    if name is not None and name not in VIEWS:
        raise ParameterError(f"unknown view {name!r}{did_you_mean(str(name), VIEWS)}")
    return name, _ENERGY if energy is None else float(energy)


def _report(found: Study) -> str:
    lines = list(found.advice)
    lines += [
        f"{f['name']}: {f['format']}, {f['layers']} layers, rank {', '.join(f['ranks'])}, "
        f"scale {', '.join(f['scales'])}, norm {f['norm']:.4g}"
        for f in found.facts
    ]
    lines += [
        f"{r.block}: {r.first} / {r.second}: cosine {r.cosine:+.3f}, opposite signs {r.sign_conflict:.0%}"
        for relation in found.relations
        for r in relation.blocks
    ]
    return "\n".join(lines)
