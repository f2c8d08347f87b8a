"""The records that files are read into: one LoRA, and what it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layer import BaseDependent, Index, Layer, Layout, LowRank, Rows, WeightAdapter

__all__ = [
    "BaseDependent",
    "BaseWeights",
    "Index",
    "Layer",
    "Layout",
    "Lora",
    "LowRank",
    "Rows",
    "WeightAdapter",
    "WholeWeight",
    "is_packed",
]

# the base model's weight of a layer or ``module.bias``; None if it has none
BaseWeights = Callable[[str], Tensor | None]


@dataclass(frozen=True, eq=False)
class WholeWeight:
    """A weight that replaces the base model's: a head, a set patch, a trained bias.

    With ``rows`` it is only these rows of the weight.
    """

    value: Tensor
    why: str
    key: str = ""
    rows: tuple[int, ...] = ()
    is_vocabulary: bool = False  # a row belongs to a token


@dataclass(frozen=True, eq=False)
class Lora:
    """One LoRA: its layers by canonical name, and everything else that its file holds.

    A layer is named like its module, and stands for the module's weight; ``module.bias`` is its bias.
    ``base_dependent`` holds the adapters whose change depends on the weight of the base model, and
    ``whole_weights`` the weights that are put in place of those of the base. ``unmerged`` names everything
    else in the file, with the reason why it cannot be merged, so that nothing disappears silently.
    """

    name: str
    layers: dict[str, Layer]
    dialect: str = "kohya"
    metadata: dict[str, str] = field(default_factory=dict)
    unmerged: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    path: Path | None = None
    sha256: str | None = None
    adapter: str | None = None  # that was chosen, of a file whose keys name several
    config: dict[str, Any] | None = None  # adapter_config.json of a PEFT folder
    origin: Lora | None = None  # what this was cut from or renamed; random masks are drawn by that
    base_dependent: dict[str, BaseDependent] = field(default_factory=dict)
    whole_weights: dict[str, WholeWeight] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of any layer; 1 without layers."""
        return max((layer.rank for layer in self.layers.values()), default=1)


def is_packed(dtype: torch.dtype) -> bool:
    """True for dtypes that hold several numbers in one byte, which torch stores but does not convert."""
    return dtype == getattr(torch, "float4_e2m1fn_x2", None)
