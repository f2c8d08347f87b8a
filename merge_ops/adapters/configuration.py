"""Configurations that a file puts in place of a module's own, as newer versions of ComfyUI read them.

``<module>.config`` holds JSON as bytes. It has no strength: it is passed on whole, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import WholeWeight
from .kind import Adapters, Kind
from .module import RawModule

CONFIGURATION = "a configuration that replaces the module's own (config)"
END = ".config"


def same_settings(first: Tensor, second: Tensor) -> bool:
    """Return whether two configurations say the same, however their JSON is laid out."""
    if torch.equal(first, second):
        return True
    try:
        a, b = (json.loads(bytes(text.cpu().tolist())) for text in (first, second))
    except (ValueError, RecursionError):
        return False
    return bool(a == b)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    if "config" not in module.tensors:
        return {}
    text = module.tensors["config"]
    if text.dtype != torch.uint8 or text.ndim != 1:
        raise LoraFormatError(
            f"{module.stem}{END} is {text.dtype} of the shape {tuple(text.shape)}, and a module's "
            "configuration is JSON in a row of bytes (uint8); remove it, or use another copy of the file"
        )
    return {END: WholeWeight(text, CONFIGURATION, module.stem + END)}


MODULE_CONFIG = Kind("module configuration", {END: "config"}, (), _read, goes_with_any=True)
