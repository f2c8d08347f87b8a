"""Reading recipes from text, and converting LoRAX's requests to the layout of our recipes."""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from ..errors import ParameterError, did_you_mean
from . import checked
from .mergekit import from_mergekit

MAX_TEXT = 1 << 20  # characters; a recipe of a hundred sources has 20 thousand
_MAX_DEPTH = 100  # of brackets in YAML, whose parser takes time that grows with the square of it
_LORAX_KEYS = ("ids", "weights", "merge_strategy", "density", "majority_sign_method", "space")
_LORAX_STRATEGIES = ("linear", "ties", "dare_linear", "dare_ties")
_LORAX_VOTES = ("total", "frequency")


def parsed_text(given: str) -> Any:
    """Parse JSON text, or YAML text if it does not begin with ``{``.

    Raises:
        ParameterError: if the text is too long or not valid, or if YAML is given without PyYAML.
    """
    if len(given) > MAX_TEXT:
        raise ParameterError(f"a text of {len(given)} characters is too long for a recipe")
    if given.lstrip().startswith("{"):
        try:
            return json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ParameterError(f"the recipe is not valid JSON: {str(error)[:100]}") from error
    if _depth(given) > _MAX_DEPTH:
        raise ParameterError(f"the recipe in YAML has more than {_MAX_DEPTH} brackets open at once")
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        raise ParameterError(
            "a recipe in YAML needs PyYAML; run 'pip install pyyaml', or give the recipe as JSON"
        ) from error
    try:
        # a merge key that names others doubles what it holds, so a few lines would fill all memory
        if any(isinstance(event, yaml.ScalarEvent) and event.value == "<<" for event in yaml.parse(given)):
            raise ParameterError("a recipe in YAML must not have merge keys (<<); write the values out")
        return yaml.safe_load(given)
    except ParameterError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML's own errors, and Python's for a value that does not match its tag
        first = " ".join(str(error).split())[:100]
        raise ParameterError(f"the recipe is not valid YAML: {first or 'it cannot be read'}") from error


def _depth(text: str) -> int:
    """How many brackets are open at once, at most."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


def own_layout(given: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the recipe in our own layout, and warnings about what an import could not keep.

    Raises:
        ParameterError: if the value is not a recipe of ours, of LoRAX or of mergekit.
    """
    plain = checked.mapping(given, "the recipe")
    if "merge_method" in plain:
        return from_mergekit(plain)
    if "ids" in plain or "merge_strategy" in plain:
        return from_lorax(plain)
    if "recipe" in plain:
        return plain, ()
    raise ParameterError(
        "this is not a recipe: it has no key 'recipe' (ours), 'ids' (LoRAX) or 'merge_method' (mergekit)"
    )


def from_lorax(given: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert LoRAX's ``merged_adapters``, with the checks of its client; ``space`` is our addition.

    Only linear may omit ``density``: LoRAX's server then uses 0, which turns every other merge into zeros.
    """
    checked.mapping(given, "the LoRAX request", _LORAX_KEYS)
    ids, weights = (checked.items(given.get(key), f"LoRAX's {key}") for key in ("ids", "weights"))
    if not ids or len(ids) != len(weights):
        raise ParameterError(
            f"LoRAX needs one weight per id, but got {len(ids)} ids and {len(weights)} weights"
        )
    strategy = _choice(given, "merge_strategy", _LORAX_STRATEGIES)
    vote = _choice(given, "majority_sign_method", _LORAX_VOTES)
    params: dict[str, Any] = {}
    if given.get("density") is not None:
        params["density"] = checked.number(given["density"], "density")
        if not 0 <= params["density"] <= 1:
            raise ParameterError(f"density {params['density']} is outside [0, 1]")
    elif strategy != "linear":
        raise ParameterError(
            f"{strategy} needs a density; without one LoRAX uses 0, which gives an empty merge"
        )
    if strategy == "linear":
        params = {}
    if strategy in ("ties", "dare_ties"):
        params["majority_sign_method"] = vote
    sources = [
        {"name": name, "weight": checked.number(weight, "a weight")}
        for name, weight in zip(ids, weights, strict=True)
    ]
    how = {"method": strategy, "params": params, "space": given.get("space", "factors")}
    return {"recipe": 1, "sources": sources, **how}, _lorax_warnings(strategy, sources)


def _choice(given: dict[str, Any], key: str, choices: tuple[str, ...]) -> str:
    """Return the value of a key, which must be one of the choices; the first one if it is missing or null."""
    value = given.get(key)
    chosen = choices[0] if value is None else checked.text(value, f"LoRAX's {key}")
    if chosen not in choices:
        raise ParameterError(
            f"LoRAX's {key} {checked.shown(chosen)} is not a choice{did_you_mean(chosen[:60], choices)}"
        )
    return chosen


def _lorax_warnings(strategy: str, sources: list[dict[str, Any]]) -> tuple[str, ...]:
    warnings = []
    if any(source["weight"] not in (0, 1) for source in sources):
        warnings.append(
            "LoRAX multiplies both factors by the weight, so 0.5 acts as 0.25 there; here it acts as 0.5"
        )
    if strategy.startswith("dare"):
        warnings.append(
            "LoRAX does not rescale the entries that DARE keeps; here they are divided by the density"
        )
    return tuple(warnings)
