"""The records that files are read into: one LoRA, and its layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

Layout = Literal["linear", "conv", "fan_in_fan_out", "embedding", "vector"]
Index = slice | Tensor
BaseWeights = Callable[
    [str], Tensor | None
]  # the base model's weight of a layer or ``module.bias``, if it has one
Rows = Callable[..., Tensor]  # rows(index, out=None): float32 rows of a delta, with its scale


class Layer(ABC):
    """The delta of one layer, of any kind: a matrix ``(out, in)``, made a few rows at a time.

    A convolution's kernel is folded into the columns, and remembered in ``kernel`` where the file says it. A
    bias, or the weight of a norm, is a matrix of one column.
    """

    scale: float
    layout: Layout
    kernel: tuple[int, ...]
    key: str
    padded_to: tuple[int, ...] = ()  # the shape that the base weight is padded to with zeros, if it is
    reader: str = ""  # whose arithmetic it follows, of ``READERS``, where programs differ

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank that the adapter was trained with; that of the delta may be higher."""

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """``(out, in)``, with the kernel in the columns."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""

    @abstractmethod
    def rows(self, device: torch.device | None) -> Rows:
        """Prepare for reading on a device; see ``Rows``."""

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def versions(self) -> tuple[int, ...]:
        """How often each tensor was written to; torch does not count writes to inference tensors."""
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in self.tensors)

    @cached_property
    def measured(self) -> dict[tuple[Any, ...], float]:
        """Numbers that merges measured on this layer, so that the next merge need not measure them again.

        The layer owns them: they are gone with it. Keys begin with what was measured and end with
        ``versions``, so that nothing is known about a tensor that was changed.
        """
        return {}

    @property
    def knows_its_kernel(self) -> bool:
        """False if the columns may hold a convolution's kernel that only the model knows."""
        return True

    @property
    def alpha_scale(self) -> float | None:
        """What alpha multiplies the delta by; None for a kind without alpha."""
        return self.scale

    @property
    def configured_rank(self) -> int | None:
        """The rank that a configuration states; None for kinds whose rank it does not state directly."""
        return None

    @property
    def rescales_base(self) -> bool:
        """True if it rescales the whole base weight: loaded in another order, it gives another result."""
        return False

    @property
    def is_checked_when_read(self) -> bool:
        """True if ``rows`` refuses NaN and infinity by itself."""
        return False

    def with_kernel(self, kernel: tuple[int, ...]) -> Layer:
        """Return the same layer of a convolution whose kernel only the model knows."""
        return self

    def take_rows(self, index: Index, key: str) -> Layer | None:
        """Return the layer of some rows of the weight; None for a kind that cannot be cut."""
        return None

    def matrix(self, device: torch.device | None = None) -> Tensor:
        """The whole delta as a float32 matrix ``(out, in)``."""
        return self.rows(device)(slice(None))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight that the delta is added to."""
        rows, columns = self.matrix_shape
        if self.stored_in_out:
            return columns, rows
        if self.layout == "vector":
            return (rows,)
        return (rows, columns // math.prod(self.kernel), *self.kernel)

    @property
    def stored_in_out(self) -> bool:
        """True if the weight is stored transposed, as ``(in, out)``."""
        return self.layout in ("fan_in_fan_out", "embedding")

    def as_weight(self, matrix: Tensor) -> Tensor:
        """View a merged ``(out, in)`` matrix in the shape of the weight."""
        return matrix.T if self.stored_in_out else matrix.reshape(self.weight_shape)

    def delta(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The weight change, computed in float32; shape ``weight_shape``."""
        where = torch.device(device) if device is not None else None
        return self.as_weight(self.matrix(where)).to(dtype or torch.float32)


@dataclass(frozen=True, eq=False)
class LowRank(Layer):
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
    padded_to: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.up, self.down

    def rows(self, device: torch.device | None) -> Rows:
        up, down = self.factors(device)
        return lambda index, out=None: torch.mm(up[index], down, out=out)

    def factors(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """Float32 ``up * scale`` and ``down`` on the device."""
        up = self.up.to(device=device, dtype=torch.float32) * self.scale
        return up, self.down.to(device=device, dtype=torch.float32)

    @property
    def configured_rank(self) -> int | None:
        return None if self.layout == "vector" else self.rank

    def take_rows(self, index: Index, key: str) -> LowRank:
        return replace(self, up=self.up[index], key=key)

    def scaled(self, factor: float) -> LowRank:
        return replace(self, scale=self.scale * factor)


class BaseDependent(ABC):
    """An adapter of one weight whose change depends on the weight itself, such as a DoRA."""

    kind: ClassVar[str]
    layout: Layout
    key: str

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""

    @property
    def alpha_scale(self) -> float | None:
        """What alpha multiplies its change by; None for a kind without alpha."""
        return None

    @property
    def configured_rank(self) -> int | None:
        """The rank that a configuration states; None for kinds whose rank it does not state directly."""
        return None

    @property
    def rescales_base(self) -> bool:
        """True if it rescales the whole base weight: loaded in another order, it gives another result."""
        return False

    @property
    def is_optional(self) -> bool:
        """True if a model may lack this weight and still be the right one."""
        return False

    @abstractmethod
    def change(self, weight: Tensor, reader: str) -> Tensor:
        """What is added to a float32 weight ``(out, in, *kernel)`` or ``(out,)`` at strength 1, likewise.

        ``reader`` is the program whose arithmetic is followed where programs differ, one of ``READERS``.
        """


READERS = ("peft", "comfyui")


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
    ``whole_weights`` the weights that are put in place of those of the base. ``unmerged`` names what was
    found but cannot take part in a merge, with the reason, so that nothing disappears without a word.
    """

    name: str
    layers: dict[str, Layer]
    dialect: str = "kohya"
    metadata: dict[str, str] = field(default_factory=dict)
    unmerged: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    path: Path | None = None
    sha256: str | None = None
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
