"""Sweep Parameter: everything after it runs once for each value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..merge_ops.errors import MergeError, ParameterError
from .inputs import CATEGORY, METHOD
from .model.queued import sent_inputs
from .status import SAYS, Said
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
            description=(
                "Vary one setting of a merge: every node after it runs once for each value. Connect two "
                "sweeps to combine each value of one with each value of the other."
            ),
            search_aliases=["xy plot", "parameter sweep", "compare loras", "lora strength test"],
            inputs=[
                io.String.Input(
                    "parameter",
                    default="density",
                    tooltip=(
                        "What to vary: a parameter of the method such as density, or method, space, "
                        "rank, seed or strength, which is that of the whole merge. Of one LoRA, by name or "
                        "number: 'strength mia', 'clip mia' (for the text encoder) or 'blocks 2'."
                    ),
                ),
                io.String.Input(
                    "values",
                    default="0.2, 0.5, 0.8",
                    tooltip=(
                        "A list such as 0.2, 0.5, 0.8 or linear, ties, or a range such as 0.1..0.9 step "
                        "0.2 or 1..4. Of blocks, texts of block strengths: down:0, down:1 mid:0.5, or "
                        "down:0..1 step 0.5."
                    ),
                ),
                METHOD.Input(
                    "method",
                    optional=True,
                    tooltip=(
                        "The settings to keep, from Merge Method, or another Sweep Parameter to "
                        "combine with. Without it, the widgets of the merge node apply."
                    ),
                ),
            ],
            outputs=[
                METHOD.Output(
                    display_name="method",
                    is_output_list=True,
                    tooltip=(
                        "One method per value, for Merge LoRAs, for the sweep input of Load & Merge "
                        "LoRAs, or for another Sweep Parameter."
                    ),
                ),
                io.String.Output(
                    display_name="label",
                    is_output_list=True,
                    tooltip="One label per value, such as density=0.2, for Labelled Grid.",
                ),
            ],
            accept_all_inputs=True,
            hidden=[io.Hidden.unique_id],
            **SAYS,
        )

    @classmethod
    def validate_inputs(cls, values: str | None = None) -> bool | str:
        """Refuse a parameter that there is not, and values that cannot be read or are out of range."""
        parameter = sent_inputs(cls).get("parameter")
        try:
            if parameter is not None and values is not None:  # None: linked
                read_sweep(str(parameter), values)
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
        return io.NodeOutput(choices, labels, ui=Said("\n".join(labels)))
