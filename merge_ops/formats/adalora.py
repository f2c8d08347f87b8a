"""AdaLoRA (arXiv:2303.10512) as PEFT saves it: pairs with singular values, and some rows taken away."""

from __future__ import annotations

from typing import Any

from ..adapters.module import RawModule, numbers_of
from ..errors import LoraFormatError, shown

TYPE = "ADALORA"
_INIT_RANK = 12  # what PEFT assumes
_EPSILON = 1e-5  # what PEFT adds to the rank
_E = ".lora_E"


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return AdaLoRA's configuration in the words of a LoRA's; any other configuration unchanged.

    ``r`` means nothing in an AdaLoRA, whose rank begins at ``init_r``; and its ``rank_pattern`` has a list
    for each module that says which of those rows were kept.

    Raises:
        LoraFormatError: if a rank is no number.
    """
    if config.get("peft_type") != TYPE:
        return config
    rank = config.get("init_r", _INIT_RANK)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise LoraFormatError(f"init_r is {shown(rank)}, not a number from 1")
    kept = config.get("rank_pattern") or {}
    if not isinstance(kept, dict) or not all(isinstance(rows, list) for rows in kept.values()):
        raise LoraFormatError("rank_pattern has no list of rows for each module, as that of an AdaLoRA has")
    ranks = {name.partition(_E)[0]: sum(map(bool, rows)) for name, rows in kept.items()}
    return {**config, "r": rank, "rank_pattern": ranks, "alpha_pattern": {}, "use_rslora": False}


def adalora_scale(config: dict[str, Any], module: RawModule, rank: int) -> float:
    """``alpha / (initial rank + 1e-5)``, as PEFT computes it whatever rank a module was left with."""
    initial = float(config["r"])
    if "ranknum" in module.tensors:
        stored = numbers_of(module, "ranknum")
        if stored.numel() != 1 or not float(stored) > 0:
            raise LoraFormatError(f"the ranknum of {module.stem} is not one number above 0")
        initial = float(stored)
    alpha = float(config.get("lora_alpha", 8))
    return (alpha if alpha > 0 else float(rank)) / (initial + _EPSILON)
