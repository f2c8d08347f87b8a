"""From the values of a node's widgets to the keywords of ``merge_ops.merge``. Needs no ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ...merge_ops.errors import ParameterError, did_you_mean
from ...merge_ops.methods.registry import METHODS, Param, get_method

PEFT_OPTION = "peft"
SPEED_LORAS = ("apart", "merged")  # what is done with LoRAs for fewer steps
AUTO, ONE_PATCH, BYPASS = PATCHING = ("auto", "one patch", "bypass")  # how a merge gets onto a model
# what a sweep can vary of one LoRA; its number or name stands after it, as in "clip mia"
OF_ONE_LORA = ("strength", "clip", "blocks")
PEFT_PARAMS = (
    Param(
        "Fraction of each LoRA that the ties, dare and magnitude_prune types keep: 0.5 keeps half.",
        0, 1, 0.01, name="density", default=0.5,
    ),
    Param(
        (
            "How the ties types choose a sign where LoRAs disagree: 'total' follows the larger sum, "
            "'frequency' the larger number of LoRAs."
        ),
        name="majority_sign_method", default="total", choices=("total", "frequency"), type=str, advanced=True,
    ),
    Param(
        "Rank of the result for types ending in svd. 0 uses the largest rank among the LoRAs.",
        0, 4096, 1, True, "svd_rank", int, 0,
    ),
    Param(
        "Types ending in svd clamp values beyond this quantile. 0 turns it off.",
        0, 1, 0.01, True, "svd_clamp", float, 0.0,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What a merge node is asked to do: keywords of ``merge``, its strength, and what single LoRAs get."""

    keywords: dict[str, Any]
    strength: float = 1.0
    # of single LoRAs: the setting, of ``OF_ONE_LORA``, and the LoRA's number or name, to its value
    settings: dict[tuple[str, str], Any] = field(default_factory=dict)

    def with_speed(self, speed_loras: str | None) -> Asked:
        """Return it with what is done with LoRAs for fewer steps, one of ``SPEED_LORAS``.

        Raises:
            ParameterError: for anything else.
        """
        chosen = SPEED_LORAS[0] if speed_loras is None else speed_loras
        if chosen not in SPEED_LORAS:
            raise ParameterError(
                f"speed_loras {chosen!r} is not a choice{did_you_mean(str(chosen), SPEED_LORAS)}"
            )
        return replace(self, keywords=self.keywords | {"speed_loras": chosen})


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """What Merge Method and Sweep Parameter pass to a merge: the values of their widgets, checked.

    ``swept`` has one (parameter, value) of each sweep; these override everything else.
    """

    method: dict[str, Any] | str | None = None
    space: str | None = None
    swept: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The swept values, such as ``density=0.2, method=ties``."""
        return ", ".join(
            f"{name}={value:.12g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.swept
        )

    def override(self, method: Any = None, strength: float | None = None, **widgets: Any) -> Asked:
        """Override the widgets of a merge node: method, strength, ``space``, ``rank`` and ``seed``.

        Raises:
            MergeError: for an unknown method or parameter, or a swept parameter that the method lacks.
        """
        given = _as_dict(method if self.method is None else self.method)
        if self.space is not None:
            widgets["space"] = self.space
        settings, params = {}, {}
        for name, value in self.swept:
            setting, _, lora = name.partition(" ")
            if lora:
                settings[setting, lora] = value
            elif name == "strength":
                strength = value
            elif name in ("space", "rank", "seed"):
                widgets[name] = value
            elif name != "method":
                params[name] = value
        given = _with_params(given, params, dict(self.swept).get("method"))
        return Asked(build_merge_keywords(given, **widgets), 1.0 if strength is None else strength, settings)


def read_patching(patching: str | None) -> str:
    """Return how a merge gets onto a model, one of ``PATCHING``.

    Raises:
        ParameterError: for anything else.
    """
    chosen = AUTO if patching is None else patching
    if chosen not in PATCHING:
        raise ParameterError(f"patching {chosen!r} is not a choice{did_you_mean(str(chosen), PATCHING)}")
    return chosen


def build_merge_keywords(
    method: dict[str, Any] | str | None,
    space: str | None = None,
    rank: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Build the keywords of ``merge_ops.merge`` from the values of the widgets.

    Raises:
        MergeError: for an unknown method or parameter, as the user sees it on the node.
    """
    given = _as_dict(method)
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


def refuse_unknown(unknown: dict[str, Any], known: tuple[str, ...], method: Any = None) -> None:
    """Refuse API inputs that no widget has: misspellings, which ComfyUI would silently drop.

    Raises:
        ParameterError: if there is one.
    """
    params = {p.name for m in METHODS.values() for p in m.params} | {p.name for p in PEFT_PARAMS}
    params.add("combination_type")
    for name in unknown:
        prefix, _, plain = name.rpartition(".")
        if prefix == "method" and plain in params:
            chosen = method.get("method") if isinstance(method, dict) else method
            raise ParameterError(f"method {chosen} has no parameter {plain!r}; leave {name} out")
        if not prefix and plain in params:
            raise ParameterError(f"unknown input {name!r} (did you mean 'method.{plain}'?)")
        raise ParameterError(f"unknown input {name!r}{did_you_mean(plain, sorted(params | set(known)))}")


def check_sent(sent: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuse a misspelled method, parameter or input of a node when it is queued, from its inputs as sent.

    ComfyUI checks the values of the parameters itself.

    Raises:
        MergeError: as the user sees it on the node.
    """
    method = sent.get("method")
    if method is None:  # left out, or linked
        return
    build_merge_keywords(str(method))  # without its parameters, whose values are not checked twice
    allowed = {"method", *known, *(f"method.{name}" for name in _parameters(str(method)))}
    refuse_unknown({name: value for name, value in sent.items() if name not in allowed}, known, method)


def _parameters(method: str) -> set[str]:
    """The parameters of a method, or of PEFT's combination types."""
    if method == PEFT_OPTION:
        return {"combination_type", *(p.name for p in PEFT_PARAMS)}
    return {p.name for p in METHODS[method].params} if method in METHODS else set()


def _as_dict(method: dict[str, Any] | str | None) -> dict[str, Any]:
    return {"method": method} if isinstance(method, str) else dict(method or {"method": "linear"})


def _with_params(given: dict[str, Any], params: dict[str, Any], swept: str | None) -> dict[str, Any]:
    """Add swept parameters to a method; if the method is swept too, each takes only those that it has."""
    name = swept or given["method"]
    known = _parameters(name) if name == PEFT_OPTION or name in METHODS else set(params)
    lacking = sorted(params.keys() - known)
    if lacking and swept is None:
        raise ParameterError(
            f"the sweep varies {lacking[0]}, which method {name} does not have; choose a method that has it"
        )
    wanted = given | params | {"method": name}
    return {k: v for k, v in wanted.items() if swept is None or k in known or k == "method"}
