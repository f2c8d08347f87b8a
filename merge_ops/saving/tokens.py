"""What makes PEFT expect single trained tokens in a folder."""

from __future__ import annotations

from typing import Any

from ..errors import MergeError
from ..lora import WholeWeight


def tokens_config(replaced: dict[str, WholeWeight], stems: dict[str, str]) -> dict[str, list[int]] | None:
    """What makes PEFT expect the tokens, by the path of the module."""
    found = {
        stems[name].removeprefix("base_model.model."): list(weight.rows)
        for name, weight in replaced.items()
        if weight.rows
    }
    return found or None


def tokens_only_config(replaced: dict[str, WholeWeight], stems: dict[str, str]) -> dict[str, Any]:
    """The configuration of a folder without any LoRA, which PEFT allows for tokens only as a kind of its own.

    Raises:
        MergeError: if modules train different tokens, which that kind cannot say.
    """
    if len({weight.rows for weight in replaced.values()}) > 1:
        names = ", ".join(sorted(replaced))
        raise MergeError(f"{names} train different tokens, which a PEFT folder without a LoRA cannot say")
    found = tokens_config(replaced, stems) or {}
    return {
        "peft_type": "TRAINABLE_TOKENS",
        "target_modules": sorted(found),
        "token_indices": next(iter(found.values())),
        "inference_mode": True,
    }
