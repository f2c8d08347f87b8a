"""LoRA Stack: LoRAs with strengths, for the merge nodes and for other packs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..merge_ops.errors import ParameterError
from .inputs import CATEGORY, COMMUNITY_STACK, LORA_MODEL, STACK, lora_list, trigger_words_output
from .model.files.stacks import check_list, list_patterns, read_file_states, read_list, read_stack
from .status import SAYS, Said
from .values.stack_entries import StackEntry


class LoraAlloyStack(io.ComfyNode):
    """Collects LoRAs from a list, from other stacks, and from core's LORA_MODEL outputs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        template = io.Autogrow.TemplatePrefix(
            LORA_MODEL.Input("lora", optional=True), prefix="lora", min=0, max=20
        )
        return io.Schema(
            node_id="LoraAlloyStack",
            display_name="LoRA Stack",
            category=CATEGORY,
            description=(
                "Collect LoRAs and their strengths: from a list, from other stacks, and from nodes "
                "that output LORA_MODEL, such as training nodes."
            ),
            search_aliases=["lora stacker", "lora list", "collect loras"],
            inputs=[
                lora_list(),
                io.MultiType.Input(
                    "stack",
                    types=[STACK, COMMUNITY_STACK],
                    optional=True,
                    tooltip="Another stack, of this pack or another one. Its LoRAs come before the list.",
                ),
                io.Autogrow.Input(
                    "lora",
                    template=template,
                    optional=True,
                    tooltip=(
                        "LoRAs from other nodes, at strength 1. A full-rank merge is truncated to the"
                        " sum of its LoRAs' ranks."
                    ),
                ),
            ],
            outputs=[
                STACK.Output(display_name="stack", tooltip="The LoRAs, for the nodes of this pack."),
                COMMUNITY_STACK.Output(
                    display_name="lora_stack",
                    tooltip=(
                        "The LoRAs as (name, strength, clip strength), for nodes of other packs. It "
                        "carries no block strengths and leaves out LoRAs that have no file."
                    ),
                ),
                trigger_words_output(),
            ],
            accept_all_inputs=True,
            hidden=[io.Hidden.unique_id],
            **SAYS,
        )

    @classmethod
    def validate_inputs(cls, loras: str | None = None, *, lora: Any = None) -> bool | str:
        """Refuse a list that cannot be read, or a file that is not there.

        ComfyUI passes the dynamic input ``lora`` to every validation.
        """
        return check_list(loras)

    @classmethod
    def fingerprint_inputs(cls, loras: str | None = None, **_: Any) -> list[Any]:
        """A file that changed under its name is read again, and so are the notes beside it."""
        from .model.files.lora_info import read_sidecar_states

        files = read_file_states(loras)
        return [*files, *read_sidecar_states(files)]

    @classmethod
    def execute(
        cls, loras: str, stack: Any = None, lora: dict[str, Any] | None = None, **unknown: Any
    ) -> io.NodeOutput:
        """Collect."""
        from .model.files.lora_info import trigger_words_of
        from .model.merges.lora_model import as_lora

        for name in unknown:
            raise ParameterError(
                f"unknown input {name!r}; a LoRA from another node is connected as 'lora.lora0'"
            )
        entries = read_stack(stack) + read_list(loras or "")
        for name, tensors in (lora or {}).items():
            if tensors is not None:
                entries.append(StackEntry(as_lora(name, tensors), 1.0, 1.0))
        named = [(e.lora_name, e.strength, e.strength_clip) for e in entries if e.lora_name is not None]
        said = Said("\n".join([_describe(entries), *list_patterns(loras)]), _warnings(entries))
        return io.NodeOutput(tuple(entries), named, trigger_words_of(entries), ui=said)


def _describe(entries: list[StackEntry]) -> str:
    from .model.merges.summary import count_loras

    if not entries:
        return "No LoRA is on: the stack is empty."
    return f"{count_loras(len(entries))}: {', '.join(entry.lora.name for entry in entries)}"


def _warnings(entries: list[StackEntry]) -> list[str]:
    """A line for each thing that other packs cannot be told."""
    named = [entry for entry in entries if entry.lora_name is not None]
    left_out = {
        "block strengths": [entry.lora.name for entry in named if entry.blocks is not None],
        "strengths over the sampling": [entry.lora.name for entry in named if entry.steps is not None],
        "which of two models a LoRA is for": [entry.lora.name for entry in named if entry.on],
    }
    return [
        f"lora_stack cannot carry {what}: other packs get {', '.join(names)} without them"
        for what, names in left_out.items()
        if names
    ]
