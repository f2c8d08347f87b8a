"""Kinds of adapters whose deltas are not low rank: LoHa, LoKr and full differences.

They are merged by every method, as deltas. Formulas: LyCORIS (arXiv:2309.14859) and its reference code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora import Index, Layer, Layout, LowRank, Rows


class _MayBeFlat(Layer):
    """Of a convolution, LyCORIS writes some factors flattened, and then only the model knows the kernel."""

    @property
    def knows_its_kernel(self) -> bool:
        return bool(self.kernel)


@dataclass(frozen=True, eq=False)
class Hadamard(_MayBeFlat):
    """LoHa: the entrywise product of two low-rank matrices, ``scale * (up_1 @ down_1) * (up_2 @ down_2)``."""

    up_1: Tensor  # (out, r)
    down_1: Tensor  # (r, in)
    up_2: Tensor
    down_2: Tensor
    scale: float = 1.0
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()
    key: str = ""

    @property
    def rank(self) -> int:
        return self.down_1.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.up_1.shape[0], self.down_1.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.up_1, self.down_1, self.up_2, self.down_2

    def rows(self, device: torch.device | None) -> Rows:
        up_1, down_1, up_2, down_2 = (t.to(device=device, dtype=torch.float32) for t in self.tensors)
        up_1 = up_1 * self.scale

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            return torch.mm(up_1[index], down_1, out=out).mul_(up_2[index] @ down_2)

        return read


@dataclass(frozen=True, eq=False)
class Kronecker(_MayBeFlat):
    """LoKr: ``scale * kron(left, right)``; a factor that the file decomposes is multiplied out when used."""

    left: Tensor | LowRank  # (a, b)
    right: Tensor | LowRank  # (c, d), d with the kernel in it; the delta is (a * c, b * d)
    rank_: int
    scale: float = 1.0
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()
    key: str = ""

    @property
    def rank(self) -> int:
        return self.rank_

    @property
    def matrix_shape(self) -> tuple[int, int]:
        (a, b), (c, d) = _shape(self.left), _shape(self.right)
        return a * c, b * d

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        halves = (self.left, self.right)
        return tuple(t for half in halves for t in (half.tensors if isinstance(half, LowRank) else (half,)))

    def factors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Both as float32 matrices."""
        return _matrix(self.left, device), _matrix(self.right, device)

    def rows(self, device: torch.device | None) -> Rows:
        left, right = self.factors(device)
        left = left * self.scale
        every = torch.arange(self.matrix_shape[0], device=left.device)

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            chosen = every[index]
            blocks = left[chosen // right.shape[0], :, None] * right[chosen % right.shape[0], None, :]
            found = blocks.flatten(1)
            return found if out is None else out.copy_(found)

        return read


def _shape(factor: Tensor | LowRank) -> tuple[int, int]:
    rows, columns = factor.matrix_shape if isinstance(factor, LowRank) else factor.shape
    return rows, columns


def _matrix(factor: Tensor | LowRank, device: torch.device | None) -> Tensor:
    if isinstance(factor, LowRank):
        return factor.matrix(device)
    return factor.to(device=device, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class Full(Layer):
    """A difference of weights as it is, ``scale * change``."""

    change: Tensor  # (out, in), the kernel folded into the columns
    scale: float = 1.0
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()
    key: str = ""

    @property
    def rank(self) -> int:
        return min(self.change.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        rows, columns = self.change.shape
        return rows, columns

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.change,)

    def rows(self, device: torch.device | None) -> Rows:
        change = self.change.to(device)

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            found = change[index].to(torch.float32)
            return torch.mul(found, self.scale, out=out)

        return read
