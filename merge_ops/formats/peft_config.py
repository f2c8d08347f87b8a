"""What PEFT's LoRA configuration says about the scale of a module."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ..errors import LoraFormatError

CONFIG_NAME = "adapter_config.json"
_MAX_CONFIG = 16 * 1024 * 1024


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a PEFT folder; only plain LoRA is read."""
    if not path.is_file():
        raise LoraFormatError(
            f"{path.parent.name} is a folder without {CONFIG_NAME}; give a PEFT adapter folder"
        )
    if path.stat().st_size > _MAX_CONFIG:
        raise LoraFormatError(
            f"{path.parent.name}/{CONFIG_NAME} is too large to be an adapter's configuration"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"{path.parent.name}/{CONFIG_NAME} is not valid JSON") from error
    if not isinstance(config, dict):
        raise LoraFormatError(f"{path.parent.name}/{CONFIG_NAME} is not a JSON object")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise LoraFormatError(
            f"{path.parent.name} is a PEFT adapter of the kind {kind}, which is not merged yet"
        )
    return config


def scale_from_config(config: dict[str, Any], module: str, rank: int) -> float:
    """``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA; patterns are matched as PEFT matches them.

    ``rank`` is that of the tensors, which wins over the configuration.
    """
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, Any], module: str, otherwise: Any) -> Any:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
