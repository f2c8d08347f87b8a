"""Inspect LoRAs: what is in a stack, and how its LoRAs relate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from comfy_api.latest import io, ui

from ..merge_ops.analyze import compare, describe
from ..merge_ops.errors import ParameterError
from .inputs import ALIASES, CATEGORY, COMMUNITY_STACK, STACK
from .stacks import entries_of_stack


class LoraAlloyInspect(io.ComfyNode):
    """Reads only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="LoraAlloyInspect",
            display_name="Inspect LoRAs",
            category=CATEGORY,
            description="Format, ranks, scale and norm of each LoRA of a stack, and for each pair and block "
            "how far they agree: cosine, and share of entries with opposite signs, estimated from some rows.",
            search_aliases=[*ALIASES, "lora info", "lora similarity"],
            inputs=[
                io.MultiType.Input("stack", types=[STACK, COMMUNITY_STACK], tooltip="The LoRAs to look at.")
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="For reading."),
                io.String.Output(display_name="json", tooltip="All facts and figures as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, stack: Any) -> io.NodeOutput:
        """Compare."""
        loras = [entry.lora for entry in entries_of_stack(stack)]
        if not loras:
            raise ParameterError("the stack has no LoRA that is on; add a line such as <lora:name:1>")
        facts, rows = [describe(lora) for lora in loras], compare(loras)
        lines = [
            f"{f['name']}: {f['format']}, {f['layers']} layers, rank {', '.join(f['ranks'])}, "
            f"scale {', '.join(f['scales'])}, norm {f['norm']:.4g}"
            for f in facts
        ]
        lines += [
            f"{r.block}: {r.first} / {r.second}: cosine {r.cosine:+.3f}, opposite signs {r.sign_conflict:.0%}"
            for r in rows
        ]
        text = "\n".join(lines)
        whole = json.dumps({"loras": facts, "comparison": [asdict(row) for row in rows]}, indent=2)
        return io.NodeOutput(text, whole, ui=ui.PreviewText(text))
