"""The configuration of a PEFT folder with single trained tokens."""

from __future__ import annotations

from typing import Any

from ..errors import MergeError
from ..lora import WholeWeight


def tokens_config(
    whole_weights: dict[str, WholeWeight], stems: dict[str, str]
) -> dict[str, list[int]] | None:
    """Return the trained tokens by module path, as PEFT expects them; None if there are none."""
    tokens = {
        stems[name].removeprefix("base_model.model."): list(weight.rows)
        for name, weight in whole_weights.items()
        if weight.rows
    }
    return tokens or None


def tokens_only_config(whole_weights: dict[str, WholeWeight], stems: dict[str, str]) -> dict[str, Any]:
    """Return the configuration of a folder with tokens and no LoRA, which PEFT treats as a kind of its own.

    Raises:
        MergeError: if modules train different tokens, which that kind cannot express.
    """
    if len({weight.rows for weight in whole_weights.values()}) > 1:
        names = ", ".join(sorted(whole_weights))
        raise MergeError(f"{names} train different tokens, which a PEFT folder without a LoRA cannot express")
    tokens = tokens_config(whole_weights, stems) or {}
    return {
        "peft_type": "TRAINABLE_TOKENS",
        "target_modules": sorted(tokens),
        "token_indices": next(iter(tokens.values())),
        "inference_mode": True,
    }
