"""Adapters that rotate the base weight: OFT and BOFT, as LyCORIS and as PEFT have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..lora import BaseDependent, Layout
from .base_dependent import check_size


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

    # a variable in the base class; here the blocks say it
    @property
    def kind(self) -> str:  # type: ignore[override]
        return "OFT" if self.blocks.ndim == 3 else "BOFT"

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.blocks,) if self.rescale is None else (self.blocks, self.rescale)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        rows = weight.shape[0]
        check_size(self, weight, self.blocks.shape[-3] * self.blocks.shape[-1] == rows)
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


@dataclass(frozen=True, eq=False)
class InputRotation(BaseDependent):
    """PEFT's OFT and BOFT: W times a block-diagonal rotation of its inputs, then a factor for each row."""

    kind: ClassVar[str] = "OFT"
    rotations: Tensor  # (blocks, size, size); one block may stand for all
    rows: Tensor | None = None  # (out, 1)
    layout: Layout = "linear"
    key: str = ""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.rotations,) if self.rows is None else (self.rotations, self.rows)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        flat = weight.flatten(1)
        rotations = self.rotations.to(weight.device, torch.float32)
        size = rotations.shape[-1]
        check_size(self, weight, flat.shape[1] % size == 0)
        check_size(self, weight, rotations.shape[0] in (1, flat.shape[1] // size))
        blocks = flat.reshape(flat.shape[0], -1, size)
        turned = torch.einsum("obj,bij->obi", blocks, rotations.expand(blocks.shape[1], size, size)).flatten(
            1
        )
        if self.rows is not None:
            turned = turned * self.rows.to(weight.device, torch.float32).reshape(-1, 1)
        return turned.reshape(weight.shape) - weight


def cayley(skew: Tensor) -> Tensor:
    """``(I + Q)(I - Q)^-1``, a rotation for each skew-symmetric matrix."""
    identity = torch.eye(skew.shape[-1], device=skew.device)
    rotation: Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return rotation


def _skew(blocks: Tensor, limit: float) -> Tensor:
    skew = blocks - blocks.mT
    norm = skew.norm() + 1e-8
    return skew * float(limit / norm) if 0 < limit < norm else skew


def _butterfly(rotation: Tensor, rows: Tensor, stride: int) -> Tensor:
    """One factor of BOFT: rows that lie ``stride`` apart are brought into one block, turned and put back."""
    columns, size = rows.shape[1], rotation.shape[-1]
    mixed = rows.reshape(-1, 2, stride, columns).transpose(1, 2).reshape(-1, size, columns)
    turned = (rotation @ mixed).reshape(-1, stride, 2, columns)
    return turned.transpose(1, 2).reshape(rows.shape)
