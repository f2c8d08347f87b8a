"""OFT and BOFT as LyCORIS has them: the rows of the base weight are rotated in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layout
from ..steady import divided, total
from .bound import check_size
from .kind import Adapters, Kind
from .module import RawModule, numbers_of, stored_alpha


@dataclass(frozen=True, eq=False)
class Oft(BaseDependent):
    """OFT (arXiv:2306.07280) and, with 4-D blocks, BOFT (arXiv:2311.06243), as LyCORIS has them.

    Rotations made by Cayley's transform turn the rows of W in blocks, then ``rescale`` stretches them.
    ``constraint`` is what such files call alpha: it bounds the norm of the skew matrices, times the number of
    rows in LyCORIS and kohya's trainer, and as it is in ComfyUI, which also leaves out OFT's ``rescale``.
    """

    blocks: Tensor  # (blocks, size, size), or (factors, blocks, size, size)
    rescale: Tensor | None
    constraint: float
    layout: Layout = "linear"
    key: str = ""

    @property
    def kind(self) -> str:
        return "OFT" if self.blocks.ndim == 3 else "BOFT"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.blocks,) if self.rescale is None else (self.blocks, self.rescale)

    def fits(self, shape: tuple[int, ...]) -> bool:
        rows = self.blocks.shape[-3] * self.blocks.shape[-1]
        rescaled = self.rescale is None or self.rescale.numel() in (1, rows)
        return (
            len(shape) > 1 and shape[0] == rows and rescaled and (self.blocks.ndim == 3 or self._joins(rows))
        )

    def _joins(self, rows: int) -> bool:
        """Each factor of a BOFT joins twice as many rows as the one before, in two halves."""
        factors, size = self.blocks.shape[0], self.blocks.shape[-1]
        return size % 2 == 0 and rows % (2 ** (factors - 1) * size) == 0

    def change(self, weight: Tensor, reader: str) -> Tensor:
        rows = weight.shape[0]
        check_size(self, weight)
        limit = self.constraint * (rows if reader == "peft" else 1)
        rotations = cayley(_skew(self.blocks.to(weight.device, torch.float32), limit))
        turned = weight.flatten(1)
        if rotations.ndim == 3:
            turned = (rotations.mT @ turned.reshape(*rotations.shape[:2], -1)).flatten(0, 1)
        else:
            for step, rotation in enumerate(rotations):
                turned = _butterfly(rotation, turned, 2**step * (rotation.shape[-1] // 2))
        if self.rescale is not None and not (reader == "comfyui" and rotations.ndim == 3):
            turned = turned * self.rescale.to(weight.device, torch.float32).reshape(-1, 1)
        return turned.reshape(weight.shape) - weight


def cayley(skew: Tensor) -> Tensor:
    """Return ``(I + Q)(I - Q)^-1``, a rotation for each skew-symmetric matrix."""
    identity = torch.eye(skew.shape[-1], device=skew.device)
    return divided(identity + skew, identity - skew)


def _skew(blocks: Tensor, limit: float) -> Tensor:
    skew = blocks - blocks.mT
    norm = math.sqrt(total(skew.square())) + 1e-8
    return skew * (limit / norm) if 0 < limit < norm else skew


def _butterfly(rotation: Tensor, rows: Tensor, stride: int) -> Tensor:
    """One factor of BOFT: rows that lie ``stride`` apart are brought into one block, turned and put back."""
    columns, size = rows.shape[1], rotation.shape[-1]
    mixed = rows.reshape(-1, 2, stride, columns).transpose(1, 2).reshape(-1, size, columns)
    turned = (rotation @ mixed).reshape(-1, stride, 2, columns)
    return turned.transpose(1, 2).reshape(rows.shape)


def _oft(module: RawModule) -> Oft:
    blocks = numbers_of(module, "oft_blocks")
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or 0 in blocks.shape:
        raise LoraFormatError(
            f"the OFT blocks of {module.stem} have the shape {tuple(blocks.shape)}, not square blocks"
        )
    rescale = numbers_of(module, "rescale").flatten() if "rescale" in module.tensors else None
    constraint = stored_alpha(module) if "alpha" in module.tensors else 0.0  # infinity bounds nothing
    if math.isnan(constraint):
        raise LoraFormatError(f"the constraint (alpha) of {module.stem} is NaN; the file is damaged")
    return Oft(blocks, rescale, constraint, key=module.stem)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _oft(module)}


OFT = Kind("OFT", {".oft_blocks": "oft_blocks", ".rescale": "rescale"}, (Oft,), _read)
