"""Sweep Parameter: everything after it runs once for each value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..merge_ops.errors import MergeError, ParameterError
from .inputs import ALIASES, CATEGORY, METHOD
from .values.keywords import MethodChoice, refuse_unknown
from .values.sweep_values import read_sweep


class LoraAlloySweep(io.ComfyNode):
    """Gives a list of methods; ComfyUI runs what takes one of them once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloySweep",
            display_name="Sweep Parameter",
            category=CATEGORY,
            description="Varies one thing of a merge: all nodes after it run once for each value. A sweep "
            "connected to another one gives every value of the one with every value of the other.",
            search_aliases=[*ALIASES, "xy plot", "grid", "compare loras", "lora strength test"],
            inputs=[
                io.String.Input(
                    "parameter",
                    default="density",
                    tooltip="A parameter of the method (density, majority_sign_method, ...), method, space, "
                    "rank, seed, strength (of the whole merge), or 'strength mia' or 'strength 2' for one "
                    "LoRA by its name or its number.",
                ),
                io.String.Input(
                    "values",
                    default="0.2, 0.5, 0.8",
                    tooltip="A list: 0.2, 0.5, 0.8 or linear, ties. A range: 0.1..0.9 step 0.2, or 1..4.",
                ),
                METHOD.Input(
                    "method",
                    optional=True,
                    tooltip="What stays the same: from Merge Method, or from another Sweep Parameter, all of "
                    "whose values are taken. Without it, the widgets of the merge node hold.",
                ),
            ],
            outputs=[
                METHOD.Output(
                    display_name="method",
                    is_output_list=True,
                    tooltip="A list, for Merge LoRAs, for sweep of Load & Merge LoRAs, or another sweep.",
                ),
                io.String.Output(
                    display_name="label",
                    is_output_list=True,
                    tooltip="A list of what each is, such as density=0.2; for Labelled Grid.",
                ),
            ],
            accept_all_inputs=True,
        )

    @classmethod
    def validate_inputs(cls, parameter: str | None = None, values: str | None = None) -> bool | str:
        """Refuse a parameter that there is not, and values that cannot be read or are out of range."""
        try:
            if parameter is not None and values is not None:  # None: linked
                read_sweep(parameter, values)
        except MergeError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, parameter: str, values: str, method: MethodChoice | None = None, **unknown: Any
    ) -> io.NodeOutput:
        """One choice for each value."""
        refuse_unknown(unknown, ("parameter", "values", "method"))
        name, found = read_sweep(parameter, values)
        base = method or MethodChoice()
        if name in dict(base.swept):
            raise ParameterError(f"{name} is swept twice; let the second sweep vary something else")
        choices = [replace(base, swept=(*base.swept, (name, value))) for value in found]
        if base.method is not None:
            for choice in choices:
                choice.override()
        labels = [choice.label for choice in choices]
        return io.NodeOutput(choices, labels, ui=ui.PreviewText("\n".join(labels)))
