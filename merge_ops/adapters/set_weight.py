"""Weights that a file puts in place of those of the base model (``set_weight``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..lora import WholeWeight
from .kind import Adapters, Kind
from .module import RawModule


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": WholeWeight(module.tensors["set"], "a weight that is set (set_weight)", module.stem)}


SET_WEIGHT = Kind("replaced weight", {".set_weight": "set"}, (WholeWeight,), _read)
