"""Widgets that several nodes share; those of the methods are made from the registry."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..merge_ops.methods.peft_names import COMBINATION_TYPES, SPACES
from ..merge_ops.methods.registry import METHODS, Param
from .model.files import list_lora_files
from .values.keywords import PEFT_OPTION, PEFT_PARAMS

CATEGORY = "model/merging/lora"
STACK = io.Custom("LORA_ALLOY_STACK")
METHOD = io.Custom("LORA_ALLOY_METHOD")
COMMUNITY_STACK = io.Custom("LORA_STACK")
LORA_MODEL = io.Custom("LORA_MODEL")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIASES = ["lora merge", "merge lora", "combine loras", "lora mixer", "ties", "dare", "power lora", "peft"]


def lora_list() -> io.String.Input:
    """The list of LoRAs: its value is text; ``web/js`` draws its editor, which offers the file names."""
    return io.String.Input(
        "loras",
        multiline=True,
        default="",
        placeholder="<lora:name:strength>",
        tooltip="The LoRAs and their strengths. As text: one <lora:name:strength> or "
        "<lora:name:strength:clip strength> a line; # is off. Strengths by block: "
        "<lora:name:0.8:blocks=down:0.5 mid:1 attn:0.8>.",
        extra_dict={"widgetType": "LORA_ALLOY_LIST", "lora_options": list_lora_files()},
    )


def method_input() -> io.DynamicCombo.Input:
    """The picker of methods with the parameters of each; PEFT's names are one more option."""
    options = [io.DynamicCombo.Option(m.name, [to_input(p) for p in m.params]) for m in METHODS.values()]
    names = io.Combo.Input(
        "combination_type",
        options=list(COMBINATION_TYPES),
        default="linear",
        optional=True,
        tooltip="One of the types of add_weighted_adapter in Hugging Face's PEFT; the result is what PEFT "
        "computes. Names that end in svd merge the true changes, the others the factors.",
    )
    options.append(io.DynamicCombo.Option(PEFT_OPTION, [names, *(to_input(p) for p in PEFT_PARAMS)]))
    summaries = "\n".join(f"{m.name}: {m.summary}" for m in METHODS.values())
    start = "How to merge. Start with linear; where LoRAs spoil each other, try ties."
    peft = f"{PEFT_OPTION}: what the PEFT library computes, under its own names."
    tooltip = f"{start}\n\n{summaries}\n{peft}\n\n{_broken_laws()}"
    return io.DynamicCombo.Input("method", options=options, tooltip=tooltip)


def _broken_laws() -> str:
    """One line with the laws that methods do not keep: each reason once, with the methods it holds for."""
    methods: dict[str, list[str]] = {}
    for method in METHODS.values():
        for reason in method.breaks.values():
            methods.setdefault(reason, []).append(method.name)
    return "Note: " + "; ".join(f"{reason} ({', '.join(names)})" for reason, names in methods.items()) + "."


def space_input() -> io.Combo.Input:
    """Where a method works."""
    return io.Combo.Input(
        "space",
        options=list(SPACES),
        default="delta",
        optional=True,
        advanced=True,
        tooltip="Leave it at delta: it merges the true weight changes. factors merges the two matrices of a "
        "LoRA separately, as PEFT does: it needs equal ranks and mixes the LoRAs with each other.",
    )


def result_inputs() -> list[io.Input]:
    """The expert settings of a merge that do not belong to its method."""
    return [
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=4096,
            optional=True,
            advanced=True,
            tooltip="0 keeps the exact result. Any other number cuts each layer to this rank: smaller, "
            "with some loss.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53,
            optional=True,
            advanced=True,
            control_after_generate="fixed",  # the enum came later than the oldest ComfyUI that is supported
            tooltip="For the dare methods, which drop entries at random. The same seed gives the same merge "
            "everywhere; the others ignore it.",
        ),
    ]


def to_input(param: Param) -> io.Input:
    """The widget of one parameter."""
    shared: dict[str, Any] = {
        "optional": True,
        "default": param.default,
        "tooltip": param.help,
        "advanced": param.advanced or None,
    }
    if param.choices:
        return io.Combo.Input(param.name, options=list(param.choices), **shared)
    if param.type is bool:
        return io.Boolean.Input(param.name, **shared)
    kind = io.Int if param.type is int else io.Float
    return kind.Input(param.name, min=param.min, max=param.max, step=param.step, **shared)
