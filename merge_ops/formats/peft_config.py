"""What PEFT's LoRA configuration says about the scale of a module."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..adapters.reading import TABLES
from ..errors import LoraFormatError, reading, shown
from ..patterns import ByPattern, NameEnds, WholePattern
from .paths import CONFIG_NAME
from .peft_refused import refuse_other_meanings

_MAX_CONFIG = 2 * 1024 * 1024  # ten thousand modules with a pattern each
_MAX_RANK = 1 << 31
_PEFT_ALPHA = 8  # what PEFT assumes where a configuration does not say, and for the rank too
_TOKENS = "TRAINABLE_TOKENS"  # rows of an embedding, see tokens.py; all other types are kinds of adapters


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a PEFT folder.

    Raises:
        LoraFormatError: if it is missing or damaged, or of a kind that is not merged.
    """
    folder = path.parent.name
    with reading(folder):
        if not path.is_file():
            raise LoraFormatError(f"the folder has no {CONFIG_NAME}; give a PEFT adapter folder")
        with reading(f"{folder}/{CONFIG_NAME}"):
            config = _parse_config(path)
        kind, known = config.get("peft_type", "LORA"), (*TABLES.peft_types, _TOKENS)
        if kind not in known:
            raise LoraFormatError(
                f"this is a PEFT adapter of the kind {shown(kind)}, which cannot be merged; "
                f"{', '.join(known)} can"
            )
        with reading(f"{folder}/{CONFIG_NAME}"):
            if not isinstance(config.get("auto_mapping") or {}, dict):
                raise LoraFormatError("auto_mapping is not an object")
            _check_names(config)
            check_scales(config)
        refuse_other_meanings(config)
    return config


def _parse_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_CONFIG:
        raise LoraFormatError("the file is too large to be an adapter's configuration")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoraFormatError(f"the file cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LoraFormatError("the file is not valid JSON") from error
    if not isinstance(config, dict):
        raise LoraFormatError("the file is not a JSON object")
    return config


def check_scales(config: dict[str, Any]) -> None:
    """Prepare the patterns of a configuration; refuse alphas that are no numbers, and what is no pattern."""
    alphas = {"lora_alpha": _alpha(config), **_table(config, "alpha_pattern")}
    for name, alpha in alphas.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
            raise LoraFormatError(f"the alpha {shown(name)} is {shown(alpha)}, not a finite number")
    _table(config, "rank_pattern")


def _check_names(config: dict[str, Any]) -> None:
    """Refuse lists of names that are none, and prepare a pattern that stands in place of one."""
    for option in ("target_parameters", "modules_to_save"):
        names = config.get(option)
        if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
            raise LoraFormatError(f"{option} is {shown(names)}, not a list of names")
    for option in ("modules_to_save", "feedforward_modules"):
        names = config.get(option)
        if isinstance(names, str):
            config[option] = WholePattern(names)
        elif isinstance(names, list):
            config[option] = NameEnds(map(str, names))


def scale_from_config(config: dict[str, Any], module: str, rank: int | None) -> float:
    """``alpha / rank``, or ``alpha / sqrt(rank)`` with rsLoRA; patterns are matched as PEFT matches them.

    ``rank`` is that of the tensors, which wins over the configuration; None where they have none.
    """
    alpha = _table(config, "alpha_pattern").of(module, _alpha(config))
    if rank == 0:
        raise LoraFormatError(f"the factors of {module} have rank 0, so they hold nothing")
    if rank is None:
        rank = rank_from_config(config, module)
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def rank_from_config(config: dict[str, Any], module: str) -> int:
    """The rank that the configuration gives a module."""
    rank = _table(config, "rank_pattern").of(module, config.get("r", _PEFT_ALPHA))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank < _MAX_RANK:
        raise LoraFormatError(f"{CONFIG_NAME}: the rank of {module} is {shown(rank)}, not a number from 1")
    return rank


def _alpha(config: dict[str, Any]) -> Any:
    kind = TABLES.peft_types.get(str(config.get("peft_type", "LORA")))
    return config.get("lora_alpha" if kind is None else kind.peft_alpha, _PEFT_ALPHA)


def _table(config: dict[str, Any], option: str) -> ByPattern:
    """A table by pattern, prepared when it is first asked for, and kept in the configuration."""
    table = config.get(option) or {}
    if not isinstance(table, dict):
        raise LoraFormatError(f"{option} is {shown(table)}, not an object")
    if not isinstance(table, ByPattern):
        table = ByPattern(table)
        if option in config:
            config[option] = table
    return table
