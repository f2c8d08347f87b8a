"""Rows of embeddings that a PEFT folder trains one by one (``trainable_token_indices``, TrainableTokens)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import LoraFormatError
from ..lora import WholeWeight

TOKENS = "an embedding of which single tokens are trained"
KEY = ".token_adapter.trainable_tokens_delta"
ONLY_KEY = ".trainable_tokens_delta"  # in a folder of TrainableTokens, without a LoRA
_KEYS = (KEY, ONLY_KEY)


def token_rows(
    keys: list[str], tensors: dict[str, Tensor], config: dict[str, Any]
) -> dict[str, tuple[str, WholeWeight]]:
    """Return, among keys that belong to no adapter, those of trained tokens: key to (stem, weight).

    Raises:
        LoraFormatError: if the configuration does not say which tokens they are.
    """
    weights = {}
    for key in keys:
        end = next((end for end in _KEYS if key.endswith(end)), None)
        if end is not None:
            stem, value = key.removesuffix(end), tensors[key]
            rows = _indices(stem.removeprefix("base_model.model."), config)
            if value.ndim != 2 or not rows or len(rows) != value.shape[0] or len(set(rows)) != len(rows):
                raise LoraFormatError(
                    f"{key} has the shape {tuple(value.shape)}, and the configuration names "
                    f"{len(rows)} tokens for it; each row needs a token of its own"
                )
            weights[key] = stem, WholeWeight(value, TOKENS, stem, rows, True)
    return weights


def _indices(path: str, config: dict[str, Any]) -> tuple[int, ...]:
    """The tokens of a module; empty if the configuration does not list them."""
    stated = config.get("trainable_token_indices") or config.get("token_indices")
    if isinstance(stated, dict):
        stated = next((own for name, own in stated.items() if f".{path}".endswith(f".{name}")), None)
    if not isinstance(stated, list) or any(type(index) is not int or index < 0 for index in stated):
        return ()
    return tuple(stated)
