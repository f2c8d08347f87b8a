"""OFT and BOFT as PEFT has them: the inputs of the base weight are rotated in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layout
from ..steady import one_thread
from .bound import check_size
from .kind import Adapters, Kind
from .module import RawModule, numbers_of
from .oft import cayley


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

    def fits(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        size, columns = self.rotations.shape[-1], math.prod(shape[1:])
        stretched = self.rows is None or self.rows.numel() in (1, shape[0])
        return stretched and columns % size == 0 and self.rotations.shape[0] in (1, columns // size)

    def change(self, weight: Tensor, reader: str) -> Tensor:
        check_size(self, weight)
        flat = weight.flatten(1)
        rotations = self.rotations.to(weight.device, torch.float32)
        size = rotations.shape[-1]
        blocks = flat.reshape(flat.shape[0], -1, size)
        turned = torch.einsum("obj,bij->obi", blocks, rotations.expand(blocks.shape[1], size, size)).flatten(
            1
        )
        if self.rows is not None:
            turned = turned * self.rows.to(weight.device, torch.float32).reshape(-1, 1)
        return turned.reshape(weight.shape) - weight


@one_thread()
def _peft_oft(module: RawModule, config: Mapping[str, Any]) -> InputRotation:
    """PEFT stores what is above the diagonal of each skew matrix, and sums a few terms of Cayley's series."""
    entries = numbers_of(module, "oft_R").to(torch.float32)
    if entries.ndim != 2 or 0 in entries.shape:
        raise LoraFormatError(f"oft_R of {module.stem} has the shape {tuple(entries.shape)}")
    size = round((1 + math.sqrt(1 + 8 * entries.shape[-1])) / 2)
    if size * (size - 1) // 2 != entries.shape[1]:
        raise LoraFormatError(f"oft_R of {module.stem} has the shape {tuple(entries.shape)}")
    rows, columns = torch.triu_indices(size, size, 1)
    skew = entries.new_zeros(entries.shape[0], size, size)
    skew[:, rows, columns] = entries
    skew = skew - skew.mT
    if config.get("coft"):
        eps = config.get("eps", 6e-5)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1e30:
            raise LoraFormatError("eps is not a finite number of 0 or more")
        limit = eps / math.sqrt(entries.shape[0])
        norms = torch.linalg.vector_norm(skew.norm(dim=2), dim=1)[:, None, None]
        skew = torch.where(norms <= limit, skew, skew * limit / norms)
    if not config.get("use_cayley_neumann", True):
        return InputRotation(cayley(-skew), key=module.stem)
    terms = config.get("num_cayley_neumann_terms", 5)
    if isinstance(terms, bool) or not isinstance(terms, int) or not 1 <= terms <= 64:
        raise LoraFormatError("num_cayley_neumann_terms is not a whole number from 1 to 64")
    highest = (
        max(terms - 1, 3) if terms > 2 else terms - 1
    )  # as PEFT sums them: the last of several is halved
    power = rotation = torch.eye(size).repeat(entries.shape[0], 1, 1)
    for term in range(1, highest + 1):
        power = power @ skew
        rotation = rotation + power * (1.0 if term == highest > 1 else 2.0)
    return InputRotation(rotation, key=module.stem)


def _peft_boft(module: RawModule) -> InputRotation:
    blocks, rows = numbers_of(module, "boft_R"), numbers_of(module, "boft_s")
    if blocks.ndim != 4 or blocks.shape[0] != 1 or blocks.shape[-1] != blocks.shape[-2]:
        raise LoraFormatError(
            f"boft_R of {module.stem} has the shape {tuple(blocks.shape)}; several butterfly factors "
            "are not supported, since PEFT itself applies them only with its CUDA extension"
        )
    first = blocks[0].to(torch.float32)
    skew = 0.5 * (first - first.mT)
    return InputRotation(cayley(-skew), rows.flatten()[:, None], key=module.stem)


def _read_oft(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _peft_oft(module, config)}


def _read_boft(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _peft_boft(module)}


PEFT_OFT = Kind(
    "OFT of PEFT",
    {".oft_R.weight": "oft_R", ".oft_R.default.weight": "oft_R"},
    (InputRotation,),
    _read_oft,
    peft_types=("OFT",),
)
PEFT_BOFT = Kind(
    "BOFT of PEFT",
    {f".boft_{part}{end}": f"boft_{part}" for part in ("R", "s") for end in ("", ".default")},
    read=_read_boft,
    peft_types=("BOFT",),
)
