"""Widgets from the registry, and what comes back from them as keywords of ``merge``."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..merge_ops.combination import COMBINATION_TYPES, SPACES
from ..merge_ops.errors import ParameterError, did_you_mean
from ..merge_ops.registry import METHODS, Param, get_method
from .files import lora_files

CATEGORY = "model/merging/lora"
PEFT_OPTION = "peft"
STACK = io.Custom("LORA_ALLOY_STACK")
METHOD = io.Custom("LORA_ALLOY_METHOD")
COMMUNITY_STACK = io.Custom("LORA_STACK")
LORA_MODEL = io.Custom("LORA_MODEL")
ALIASES = ["lora merge", "merge lora", "combine loras", "lora mixer", "ties", "dare", "power lora", "peft"]

_PEFT_PARAMS = (
    Param("Fraction kept by ties, dare and magnitude_prune.", 0, 1, 0.01, name="density", default=0.5),
    Param(
        "PEFT's sign vote of the ties types.", name="majority_sign_method", default="total",
        choices=("total", "frequency"), type=str,
    ),
    Param("Rank of the *svd types; 0: the largest of the LoRAs.", 0, 4096, 1, False, "svd_rank", int, 0),
    Param("Quantile at which the *svd types clamp; 0 is off.", 0, 1, 0.01, True, "svd_clamp", float, 0.0),
)  # fmt: skip


def lora_list() -> io.String.Input:
    """The list of LoRAs: its value is text, and an editor is drawn over it."""
    return io.String.Input(
        "loras",
        multiline=True,
        default="",
        placeholder="<lora:name:strength>",
        tooltip="One <lora:name:strength> or <lora:name:strength:clip strength> a line; # is off.",
        extra_dict={"lora_options": lora_files()},
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
    options.append(io.DynamicCombo.Option(PEFT_OPTION, [names, *(to_input(p) for p in _PEFT_PARAMS)]))
    summaries = "\n".join(f"{m.name}: {m.summary}" for m in METHODS.values())
    return io.DynamicCombo.Input("method", options=options, tooltip=f"How to merge.\n{summaries}")


def merge_inputs() -> list[io.Input]:
    """The expert settings of a merge."""
    return [
        io.Combo.Input(
            "space",
            options=list(SPACES),
            default="delta",
            optional=True,
            advanced=True,
            tooltip="delta merges the true weight changes. factors merges up and down separately, as PEFT does: "
            "it needs equal ranks and mixes the LoRAs with each other.",
        ),
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
            control_after_generate=io.ControlAfterGenerate.fixed,
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


def merge_keywords(
    method: dict[str, Any] | str | None,
    space: str | None = None,
    rank: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Keywords of ``merge_ops.merge`` from the values of the widgets.

    Raises:
        MergeError: for an unknown method or parameter, in the words that a user sees on the node.
    """
    given = {"method": method} if isinstance(method, str) else dict(method or {"method": "linear"})
    name = str(given.pop("method"))
    params = {key: value for key, value in given.items() if value is not None}
    shared: dict[str, Any] = {"seed": seed or 0}
    if name == PEFT_OPTION:
        chosen = {"combination_type": params.pop("combination_type", "linear")}
        chosen |= {key: value for key, value in params.items() if not (key.startswith("svd_") and not value)}
        if space not in (None, "delta") or rank:
            raise ParameterError(
                "with method peft, space and rank come from the combination type and svd_rank"
            )
        return chosen | shared
    if name not in METHODS:
        raise ParameterError(f"unknown merge method {name!r}{did_you_mean(name, (*METHODS, PEFT_OPTION))}")
    get_method(name).resolve(params)
    return {"method": name, **params, "space": space or "delta", "rank": rank or None, **shared}


def refuse_unknown(unknown: dict[str, Any], known: tuple[str, ...]) -> None:
    """An API input that no widget has is a misspelling, which ComfyUI would drop without a word."""
    for name in unknown:
        plain = name.partition(".")[2] or name
        params = {p.name for m in METHODS.values() for p in m.params} | {p.name for p in _PEFT_PARAMS}
        names = sorted(params | set(known) | {"combination_type"})
        raise ParameterError(f"unknown input {name!r}{did_you_mean(plain, names)}")
