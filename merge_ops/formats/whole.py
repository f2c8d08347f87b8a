"""Weights that a PEFT folder holds as a whole: heads, resized embeddings, and trained biases."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..lora import WholeWeight
from ..patterns import NameEnds

HEAD = "a module that is saved whole (modules_to_save)"
BIAS = "a trained bias"
EMBEDDING = "an embedding that is saved whole"


def whole_weights(
    keys: list[str], tensors: dict[str, Tensor], config: dict[str, Any]
) -> dict[str, tuple[str, WholeWeight]]:
    """Return, among keys that belong to no adapter, those of plain weights: key to (stem, weight).

    The stem of a bias ends in ``.bias``, since it is a layer of its own.
    """
    weights = {}
    for key in keys:
        stem, _, last = key.rpartition(".")
        if last in ("weight", "bias") and stem.startswith("base_model.model."):
            place = stem.removesuffix(".base_layer")
            why = _why(place, last, tensors[key], config)
            weight = WholeWeight(tensors[key], why, key, is_vocabulary=why == EMBEDDING)
            weights[key] = (place if last == "weight" else f"{place}.bias", weight)
    return weights


def _why(module: str, last: str, tensor: Tensor, config: dict[str, Any]) -> str:
    saved = config.get("modules_to_save") or []
    is_head = (saved if isinstance(saved, NameEnds) else NameEnds(saved)).fit(module)
    if last == "bias" and not is_head and config.get("bias", "none") != "none":
        return BIAS
    named = "embed" in module.rpartition(".")[2] or module.endswith(("wte", "lm_head"))
    return EMBEDDING if named and tensor.ndim == 2 else HEAD  # whose rows belong to tokens
