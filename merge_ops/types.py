"""The records that files are read into: one LoRA, and one low-rank layer of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Layout = Literal["linear", "conv", "fan_in_fan_out", "embedding"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The delta of one layer as two factors: ``delta = scale * up @ down``.

    ``up`` is PEFT's ``lora_B`` and kohya's ``lora_up``; ``down`` is ``lora_A`` and ``lora_down``. Both are
    kept as matrices: a convolution's kernel is folded into the columns of ``down`` and remembered in
    ``kernel``, and a Tucker core (``lora_mid``) is multiplied into ``down`` when the file is read, which is
    exact.
    """

    up: Tensor  # (out, r)
    down: Tensor  # (r, in), in = input channels x kernel
    scale: float = 1.0  # alpha / rank, resolved when the file is read
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()  # (kh, kw) of a convolution
    key: str = ""  # the module's name as the file spells it

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight that the delta is added to."""
        rows, columns = self.matrix_shape
        if self.stored_in_out:
            return columns, rows
        return (rows, columns // math.prod(self.kernel), *self.kernel)

    @property
    def stored_in_out(self) -> bool:
        """True where the weight is stored the other way round than the matrix, ``(in, out)``."""
        return self.layout in ("fan_in_fan_out", "embedding")

    def as_weight(self, matrix: Tensor) -> Tensor:
        """View a merged ``(out, in)`` matrix in the shape of the weight."""
        if self.stored_in_out:
            return matrix.T
        return matrix.reshape(self.weight_shape)

    def delta(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The weight change, computed in float32; shape ``weight_shape``."""
        up = self.up.to(device=device, dtype=torch.float32) * self.scale
        return self.as_weight(up @ self.down.to(device=device, dtype=torch.float32)).to(
            dtype or torch.float32
        )

    def scaled(self, factor: float) -> LowRank:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, eq=False)
class Lora:
    """One LoRA: its layers by canonical name, and whatever else its file held.

    ``unmerged`` names what was found but cannot take part in a merge, with the reason, so that nothing
    disappears without a word.
    """

    name: str
    layers: dict[str, LowRank]
    dialect: str = "kohya"
    metadata: dict[str, str] = field(default_factory=dict)
    unmerged: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    path: Path | None = None
    sha256: str | None = None
    config: dict[str, Any] | None = None  # adapter_config.json of a PEFT folder

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max(layer.rank for layer in self.layers.values())
