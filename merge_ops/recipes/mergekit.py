"""Converting mergekit's configuration of a LoRA merge to our recipes, where both mean the same.

In mergekit the weights take part in the sign vote, and the sum is divided by the weights that agree. Here, as
in PEFT, each LoRA has one vote, and the sum is divided by the number of LoRAs that agree. Both give the same
result for equal weights, which then cancel. Without a vote ``normalize`` divides by the sum of all weights,
which is a scale.
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
    """Return the recipe in our own layout, and warnings about what was ignored.

    Raises:
        ParameterError: for an invalid value, and for one that a recipe cannot express exactly.
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
    if name != "linear":  # all other methods merge changes of the base model, and the base itself has none
        models = [model for model in models if base is None or model.get("model") != base]
    if not models:
        raise ParameterError("the mergekit configuration lists no model other than the base; list the LoRAs")
    names = [_lora_name(model.get("model"), base) for model in models]
    weights, densities = _weights_and_densities(names, models, shared)
    density = _one_density(name, densities)
    scale = _scale(name, weights, shared)
    if name in ("ties", "dare_ties"):
        weights = _voting(name, weights, shared)
    params: dict[str, Any] = {} if _METHODS[name] == "linear" else {"density": density}
    sources = [{"name": n, "weight": w} for n, w in zip(names, weights, strict=True)]
    layout = {"recipe": 1, "sources": sources, "method": _METHODS[name], "params": params, "scale": scale}
    return layout, _warnings(given, name, density)


def _lora_name(value: Any, base: Any) -> str:
    """Return the LoRA of ``base+lora``, mergekit's notation for a LoRA on a model."""
    name = checked.text(value, "model")
    return name.removeprefix(f"{base}+") if isinstance(base, str) else name


def _weights_and_densities(
    names: list[str], models: list[dict[str, Any]], shared: dict[str, Any]
) -> tuple[list[float], list[float]]:
    """Return the weight and the density of each model: its own, or else the global one."""
    weights, densities = [], []
    for name, model in zip(names, models, strict=True):
        own = checked.mapping(
            model.get("parameters") or {}, f"parameters of {checked.shown(name)}", ("weight", "density")
        )
        both = {key: shared[key] for key in ("weight", "density") if key in shared} | own
        if "weight" not in both:
            raise ParameterError(f"{checked.shown(name)} has no weight, which mergekit needs for every model")
        weights.append(_constant(both["weight"], "weight"))
        densities.append(_constant(both.get("density", 1.0), "density"))
    return weights, densities


def _constant(value: Any, what: str) -> float:
    if isinstance(value, list | dict):
        raise ParameterError(
            f"{what} is a gradient over the layers, which a recipe cannot express; give one number"
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
            "the models have different densities, which a recipe cannot express; give one density"
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
    """Return ``lambda``, divided by the sum of the weights where mergekit normalizes without a vote."""
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
    """Return the weights of a merge with a vote, if our method gives mergekit's result with them."""
    normalized = _flag(shared, "normalize", name in _NORMALIZED)
    if len(weights) == 1:
        return [1.0] if normalized and weights[0] else weights
    if not normalized:
        raise ParameterError(
            f"mergekit's {name} with normalize: false adds the LoRAs that agree, but here they are averaged; "
            "a recipe cannot express that"
        )
    if len(set(weights)) > 1 or weights[0] <= 0:
        raise ParameterError(
            f"mergekit's {name} counts weights as votes, but here each LoRA has one vote; both are the same "
            "only for equal positive weights"
        )
    return [1.0] * len(weights)


def _warnings(given: dict[str, Any], name: str, density: float) -> tuple[str, ...]:
    warnings = [
        f"mergekit's {key!r} is ignored: only LoRAs are merged, and saved as you choose"
        for key in ("base_model", "dtype", "out_dtype", "name")
        if key in given
    ]
    if name.startswith("dare") and density < 1:
        warnings.append(
            "mergekit draws other random masks and rescales to the same L1 norm; here the kept entries are "
            "divided by the density, which gives the same result only on average"
        )
    return tuple(warnings)
