"""Widgets that several nodes share; those of the methods are made from the registry."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..merge_ops.analysis.plots import THEMES
from ..merge_ops.methods.peft_names import COMBINATION_TYPES, SPACES
from ..merge_ops.methods.registry import METHODS, Method, Param
from .values.keywords import PATCHING, PEFT_OPTION, PEFT_PARAMS, SPEED_LORAS
from .values.recommended import ADVICE, RECOMMENDED

CATEGORY = "model/merging/lora"
STACK = io.Custom("LORA_ALLOY_STACK")
METHOD = io.Custom("LORA_ALLOY_METHOD")
COMMUNITY_STACK = io.Custom("LORA_STACK")
LORA_MODEL = io.Custom("LORA_MODEL")
RECORDING = io.Custom("LORA_RECORDING")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PEFT_SUMMARY = "the combination types of the PEFT library, under PEFT's own names."


def lora_list(names: list[str] | None = None) -> io.String.Input:
    """The list of LoRAs: its value is text, and ``web/js`` draws its editor.

    That offers the file ``names``, which one node hands over for all: the page loads every definition.
    """
    return io.String.Input(
        "loras",
        multiline=True,
        default="",
        placeholder="<lora:name:strength>",
        tooltip=(
            "The LoRAs and their strengths. As text, each line is <lora:name:strength> or "
            "<lora:name:strength:clip strength>; # switches a line off. Strengths by block: "
            "<lora:name:0.8:blocks=down:0.5 mid:1 attn:0.8>. For the first quarter of the sampling only: "
            "<lora:name:0.8:steps=0-0.25>. For one of two models: <lora:name:0.8:on=high>. A prompt for "
            "Record LoRAs comes last: <lora:name:0.8:prompt=a photo of mia>."
        ),
        extra_dict={"widgetType": "LORA_ALLOY_LIST", **({} if names is None else {"lora_options": names})},
    )


def method_input() -> io.DynamicCombo.Input:
    """The picker of methods with the parameters of each; PEFT's names are one more option."""
    options = [io.DynamicCombo.Option(m.name, [to_input(p) for p in m.params]) for m in METHODS.values()]
    names = io.Combo.Input(
        "combination_type",
        options=list(COMBINATION_TYPES),
        default="linear",
        optional=True,
        tooltip=(
            "A combination type of PEFT's add_weighted_adapter, with the result that PEFT computes. "
            "Types ending in svd merge the full weight changes; the others work on the LoRA matrices."
        ),
    )
    options.append(io.DynamicCombo.Option(PEFT_OPTION, [names, *(to_input(p) for p in PEFT_PARAMS)]))
    summaries = "\n".join(f"{m.name}: {m.summary}" for m in METHODS.values())
    tooltip = f"{ADVICE}\n\n{summaries}\n{PEFT_OPTION}: {PEFT_SUMMARY}\n\n{_broken_laws()}"
    notes = [_note(m) for m in METHODS.values()] + [{"name": PEFT_OPTION, "summary": PEFT_SUMMARY}]
    return io.DynamicCombo.Input(
        "method", options=options, tooltip=tooltip, extra_dict={"lora_alloy_methods": notes}
    )


def _note(method: Method) -> dict[str, Any]:
    """What the list of methods of ``web/js`` says about one."""
    note: dict[str, Any] = {"name": method.name, "summary": method.summary}
    if method.name in RECOMMENDED:
        note["recommended"] = RECOMMENDED[method.name]
    if method.needs_recording:
        note["recording"] = True
    if "generator" in method.supplied:
        note["random"] = True
    if method.kind == "entrywise":
        note["factors"] = True
    return note


def _broken_laws() -> str:
    """One line with the laws that methods do not keep: each reason once, with the methods it holds for."""
    methods: dict[str, list[str]] = {}
    for method in METHODS.values():
        for reason in method.breaks.values():
            methods.setdefault(reason, []).append(method.name)
    return "Note: " + "; ".join(f"{reason} ({', '.join(names)})" for reason, names in methods.items()) + "."


def trigger_words_output() -> io.String.Output:
    """The words that call up what the LoRAs of a node were trained on."""
    return io.String.Output(
        display_name="trigger_words",
        tooltip=(
            "The trigger words of the LoRAs that are on, with commas between them, for a prompt. They come "
            "from the notes beside the files and from the files' metadata."
        ),
    )


def hooks_output() -> io.Hooks.Output:
    """The merge as hooks. New outputs come behind: saved graphs keep links by their places."""
    return io.Hooks.Output(
        display_name="hooks",
        tooltip=(
            "The merge as hooks, for a conditioning: with Cond Set Props and a mask it holds in one area. "
            "Sample with the model from before this node."
        ),
    )


def model_low_input() -> io.Model.Input:
    """The second model of a pair. Behind the other inputs: saved graphs keep links by their places."""
    return io.Model.Input(
        "model_low",
        optional=True,
        tooltip=(
            "The low-noise model of a pair such as Wan 2.2's; model is then the high-noise one. LoRAs go to "
            "the model that their names state (high_noise, low_noise) or :on=high and :on=low in the list, "
            "else to both."
        ),
    )


def lora_low_output() -> io.Custom.Output:
    """The merge for the second model of a pair."""
    return LORA_MODEL.Output(
        display_name="lora_low",
        tooltip="The merged LoRA of the low-noise model; lora is then that of the high-noise model.",
    )


def hooks_low_output() -> io.Hooks.Output:
    """The hooks for the second model of a pair."""
    return io.Hooks.Output(
        display_name="hooks_low",
        tooltip="The merge of the low-noise model as hooks; hooks are then those of the high-noise model.",
    )


def recording_input() -> io.Input:
    """A recording, for what a merge can use of it."""
    return RECORDING.Input(
        "recording",
        optional=True,
        tooltip="From Record LoRAs, of the same LoRAs: for method calibrated, and for auto_strength.",
    )


def auto_strength_input() -> io.Input:
    """The strength by measuring. Behind the other widgets: saved graphs keep values by their places."""
    return io.Boolean.Input(
        "auto_strength",
        default=False,
        optional=True,
        advanced=True,
        tooltip=(
            "Try five strengths of the whole merge, 0.7 to 1.3 times the one that is set, and take the "
            "one that keeps most of the recorded LoRAs. Needs a recording."
        ),
    )


def speed_loras_input() -> io.Combo.Input:
    """What is done with LoRAs for fewer steps. Behind ``auto_strength``, for the same reason."""
    return io.Combo.Input(
        "speed_loras",
        options=list(SPEED_LORAS),
        default=SPEED_LORAS[0],
        optional=True,
        advanced=True,
        tooltip=(
            "LoRAs that make fewer steps enough, such as LCM, Lightning, Turbo and Hyper, break when they are"
            " trimmed or voted on: apart adds them after the merge. merged treats them as any other LoRA. "
            "linear does the same with both."
        ),
    )


def patching_input() -> io.Combo.Input:
    """How the merge gets onto MODEL and CLIP. The last widget of a node, for the same reason."""
    return io.Combo.Input(
        "patching",
        options=list(PATCHING),
        default=PATCHING[0],
        optional=True,
        advanced=True,
        tooltip=(
            "auto patches the weights, as Load LoRA does; on GGUF models, whose patches are computed at "
            "every step, all LoRAs become one patch. one patch does that on any model, which saves time where"
            " a model does not fit into memory. bypass changes no weight: layers add the LoRAs to their "
            "outputs, also where weights are packed so that nothing can patch them."
        ),
    )


def theme_input() -> io.Combo.Input:
    """The colours of a picture. The editor hides it, and sends the theme that it shows."""
    return io.Combo.Input(
        "theme",
        options=list(THEMES),
        default="light",
        optional=True,
        socketless=True,
        tooltip="Colours of the picture. The editor sets it to those of its own theme.",
        extra_dict={"hidden": True},
    )


def space_input() -> io.Combo.Input:
    """Where a method works."""
    return io.Combo.Input(
        "space",
        options=list(SPACES),
        default="delta",
        optional=True,
        advanced=True,
        tooltip=(
            "delta merges the actual weight changes; keep it unless you need the same result as PEFT."
            " factors merges the two matrices of each LoRA separately, which needs equal ranks and "
            "adds cross terms between the LoRAs; only some methods offer it."
        ),
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
            tooltip=(
                "0 keeps the exact result. Any other value truncates every layer to this rank, which "
                "makes the LoRA smaller and loses some detail."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53,
            optional=True,
            advanced=True,
            control_after_generate="fixed",  # the enum came later than the oldest ComfyUI that is supported
            tooltip=(
                "Seed for dare and della methods, which drop entries at random: the same seed gives the "
                "same merge on every machine. Other methods ignore it."
            ),
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
