"""Merge Method: a method with its parameters, shared among merges."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .inputs import CATEGORY, METHOD, method_input, space_input
from .model.queued import check_method, known_inputs
from .values.keywords import MethodChoice, build_merge_keywords, refuse_unknown


class LoraAlloyMethod(io.ComfyNode):
    """Checks a method, and gives it to merges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyMethod",
            display_name="Merge Method",
            category=CATEGORY,
            description="Choose a merge method and its parameters for one or more Merge LoRAs nodes.",
            search_aliases=["merge algorithm", "merge mode", "slerp", "della", "breadcrumbs", "peft"],
            inputs=[method_input(), space_input()],
            outputs=[
                METHOD.Output(
                    display_name="method", tooltip=("The method, for Merge LoRAs or Sweep Parameter.")
                )
            ],
            accept_all_inputs=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, method: dict[str, Any] | str | None = None) -> bool | str:
        """Refuse a misspelled method or parameter."""
        return check_method(cls, method)

    @classmethod
    def execute(cls, method: Any = None, space: str | None = None, **unknown: Any) -> io.NodeOutput:
        """Check and pass on."""
        refuse_unknown(unknown, known_inputs(cls), method)
        build_merge_keywords(method, space)
        return io.NodeOutput(MethodChoice(method, space))
