"""Widgets that several nodes share; those of the methods are made from the registry."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..merge_ops.combination import COMBINATION_TYPES, SPACES
from ..merge_ops.registry import METHODS, Param
from .files import lora_files
from .keywords import PEFT_OPTION, PEFT_PARAMS

CATEGORY = "model/merging/lora"
STACK = io.Custom("LORA_ALLOY_STACK")
METHOD = io.Custom("LORA_ALLOY_METHOD")
COMMUNITY_STACK = io.Custom("LORA_STACK")
LORA_MODEL = io.Custom("LORA_MODEL")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIASES = ["lora merge", "merge lora", "combine loras", "lora mixer", "ties", "dare", "power lora", "peft"]


def lora_list() -> io.String.Input:
    """The list of LoRAs: its value is text; ``web/js`` draws the editor over it, and offers the file names."""
    return io.String.Input(
        "loras",
        multiline=True,
        default="",
        placeholder="<lora:name:strength>",
        tooltip="One <lora:name:strength> or <lora:name:strength:clip strength> a line; # is off.",
        extra_dict={"widgetType": "LORA_ALLOY_LIST", "lora_options": lora_files()},
    )


def method_input() -> io.DynamicCombo.Input:
    """The picker of methods with the parameters of each; PEFT's names are one more option."""
    options = [io.DynamicCombo.Option(m.name, [to_input(p) for p in m.params]) for m in METHODS.values()]
    names = io.Combo.Input(
        "combination_type",
        options=list(COMBINATION_TYPES),
        default="linear",
        optional=True,
        tooltip="A name of PEFT's add_weighted_adapter; the result is what PEFT computes.",
    )
    options.append(io.DynamicCombo.Option(PEFT_OPTION, [names, *(to_input(p) for p in PEFT_PARAMS)]))
    summaries = "\n".join(f"{m.name}: {m.summary}" for m in METHODS.values())
    return io.DynamicCombo.Input("method", options=options, tooltip=f"How to merge.\n{summaries}")


def space_input() -> io.Combo.Input:
    """Where a method works."""
    return io.Combo.Input(
        "space",
        options=list(SPACES),
        default="delta",
        optional=True,
        advanced=True,
        tooltip="delta merges the true weight changes. factors merges up and down separately, as PEFT does: "
        "it needs equal ranks and mixes the LoRAs with each other.",
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
            tooltip="Truncate every layer to this rank; 0 keeps the exact result.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53,
            optional=True,
            advanced=True,
            control_after_generate="fixed",  # the enum came later than the oldest ComfyUI that is supported
            tooltip="Of the random masks of DARE. The same seed gives the same masks everywhere.",
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
