"""mergekit's configuration of a LoRA merge in the layout of our own recipes, where both mean the same.

mergekit lets the weights vote and divides by the sum of the weights that agree; ours, as PEFT, lets the LoRAs
vote and divides by their number. The two are the same for equal weights, which then cancel. Without a vote
``normalize`` divides by the sum of all weights, which is a scale.
"""

from __future__ import annotations

from typing import Any

from ..errors import ParameterError, did_you_mean
from . import checked

_METHODS = {
    "linear": "linear",
    "task_arithmetic": "linear",
    "ties": "ties",
    "dare_linear": "dare_linear",
    "dare_ties": "dare_ties",
}
_NORMALIZED = ("linear", "ties")  # unless the configuration says otherwise
_KEYS = ("merge_method", "models", "parameters", "base_model", "dtype", "out_dtype", "name")
_GLOBAL = ("normalize", "density", "weight", "lambda", "int8_mask", "rescale")
_ALMOST_ZERO = 1e-8


def from_mergekit(given: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The recipe in our own layout, and warnings about what was ignored.

    Raises:
        ParameterError: for what is wrong, and for what cannot be expressed exactly, with the reason.
    """
    for key in ("slices", "modules"):
        if key in given:
            raise ParameterError(f"mergekit's {key!r} cannot be expressed as a recipe; only 'models' can")
    checked.mapping(given, "the mergekit configuration", _KEYS)
    name = checked.text(given["merge_method"], "merge_method")
    if name not in _METHODS:
        hint = did_you_mean(name[:60], _METHODS)
        raise ParameterError(f"mergekit's method {checked.shown(name)} cannot be expressed as a recipe{hint}")
    shared = checked.mapping(given.get("parameters") or {}, "parameters", _GLOBAL)
    base = given.get("base_model")
    models = [
        checked.mapping(model, "a model", ("model", "parameters"))
        for model in checked.items(given.get("models"), "models")
    ]
    if name != "linear":  # all other methods look at changes of the base model, of which it has none itself
        models = [model for model in models if base is None or model.get("model") != base]
    if not models:
        raise ParameterError("the mergekit configuration has no model besides the base; list the LoRAs")
    names = [_lora_name(model.get("model"), base) for model in models]
    weights, densities = _of_each(names, models, shared)
    density = _one_density(name, densities)
    scale = _scale(name, weights, shared)
    if name in ("ties", "dare_ties"):
        weights = _voting(name, weights, shared)
    params: dict[str, Any] = {} if _METHODS[name] == "linear" else {"density": density}
    sources = [{"name": n, "weight": w} for n, w in zip(names, weights, strict=True)]
    layout = {"recipe": 1, "sources": sources, "method": _METHODS[name], "params": params, "scale": scale}
    return layout, _warnings(given, name, density)


def _lora_name(value: Any, base: Any) -> str:
    """``base+lora`` is mergekit's way to write a LoRA on a model; only the LoRA is merged here."""
    name = checked.text(value, "model")
    return name.removeprefix(f"{base}+") if isinstance(base, str) else name


def _of_each(
    names: list[str], models: list[dict[str, Any]], shared: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """The weight and the density of each model: its own, or else that of all."""
    weights, densities = [], []
    for name, model in zip(names, models, strict=True):
        own = checked.mapping(
            model.get("parameters") or {}, f"parameters of {checked.shown(name)}", ("weight", "density")
        )
        merged = {key: shared[key] for key in ("weight", "density") if key in shared} | own
        if "weight" not in merged:
            raise ParameterError(f"{checked.shown(name)} has no weight, which mergekit needs for every model")
        weights.append(_constant(merged["weight"], "weight"))
        densities.append(_constant(merged.get("density", 1.0), "density"))
    return weights, densities


def _constant(value: Any, what: str) -> float:
    if isinstance(value, list | dict):
        raise ParameterError(
            f"{what} is a gradient over the layers, which a recipe cannot say; give one number"
        )
    return checked.number(value, what)


def _flag(shared: dict[str, Any], key: str, otherwise: bool) -> bool:
    value = shared.get(key, otherwise)
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise ParameterError(f"{key} must be true or false, not {checked.shown(value)}")
    return bool(value)


def _one_density(name: str, densities: list[float]) -> float:
    if len(set(densities)) > 1:
        raise ParameterError(
            "the models have different densities, which a recipe cannot say; give one density"
        )
    density = densities[0]
    if not 0 <= density <= 1:
        raise ParameterError(f"density {density} is outside [0, 1]")
    if _METHODS[name] == "linear" and density != 1:
        raise ParameterError(
            f"mergekit's {name} drops nothing, so density {density:g} has no effect; leave it out"
        )
    return density


def _scale(name: str, weights: list[float], shared: dict[str, Any]) -> float:
    """``lambda``, over the sum of the weights where mergekit normalizes without a vote."""
    scale = _constant(shared.get("lambda", 1.0), "lambda")
    if name == "linear" and scale != 1:
        raise ParameterError("mergekit's linear has no lambda; use task_arithmetic")
    if name.startswith("dare") and not _flag(shared, "rescale", True):
        raise ParameterError("rescale: false cannot be expressed as a recipe; DARE rescales here")
    if name in ("ties", "dare_ties") or not _flag(shared, "normalize", name in _NORMALIZED):
        return scale
    total = sum(weights)
    if abs(total) < _ALMOST_ZERO:
        raise ParameterError("the weights add up to zero, so they cannot be normalized; set normalize: false")
    return scale / total


def _voting(name: str, weights: list[float], shared: dict[str, Any]) -> list[float]:
    """The weights of a merge with a vote, if ours gives mergekit's result with them."""
    normalized = _flag(shared, "normalize", name in _NORMALIZED)
    if len(weights) == 1:
        return [1.0] if normalized and weights[0] else weights
    if not normalized:
        raise ParameterError(
            f"mergekit's {name} with normalize: false adds the LoRAs that agree, and here they are averaged; "
            "a recipe cannot say that"
        )
    if len(set(weights)) > 1 or weights[0] <= 0:
        raise ParameterError(
            f"mergekit's {name} lets the weights vote, and here each LoRA has one vote; the two are the same "
            "only for equal positive weights"
        )
    return [1.0] * len(weights)


def _warnings(given: dict[str, Any], name: str, density: float) -> tuple[str, ...]:
    warnings = [
        f"mergekit's {key!r} is ignored: only LoRAs are merged, and the file is written as asked"
        for key in ("base_model", "dtype", "out_dtype", "name")
        if key in given
    ]
    if name.startswith("dare") and density < 1:
        warnings.append(
            "mergekit draws other random masks and rescales to the same L1 norm; here the rest is divided by "
            "the density, which is equal on average only"
        )
    return tuple(warnings)
