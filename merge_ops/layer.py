"""What an adapter of one weight is: a delta of its own, or a change that depends on the base weight."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .room import check_room

Layout = Literal["linear", "conv", "fan_in_fan_out", "embedding", "vector"]
Index = slice | Tensor
A = TypeVar("A", bound="WeightAdapter")
Rows = Callable[..., Tensor]  # rows(index, out=None): float32 rows of a delta, with its scale


class WeightAdapter(ABC):
    """The adapter of one weight: what every kind answers about itself."""

    layout: Layout
    key: str  # the module's name as the file spells it

    def changed(self: A, **fields: Any) -> A:
        """Return the same adapter with other values of some fields."""
        return replace(self, **fields)  # type: ignore[type-var]  # each kind is a dataclass, though not this base

    @property
    @abstractmethod
    def kind(self) -> str:
        """What descriptions call it."""

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


class Layer(WeightAdapter):
    """The delta of one layer, of any kind: a matrix ``(out, in)``, made a few rows at a time.

    A convolution's kernel is folded into the columns, and remembered in ``kernel`` where the file says it. A
    bias, or the weight of a norm, is a matrix of one column.
    """

    scale: float
    kernel: tuple[int, ...]
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
        return self.scale

    @property
    def product_rank(self) -> int | None:
        """The rank of ``product_factors``, known without making them; None where there are none."""
        return None

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

    def product_factors(self) -> tuple[Tensor, Tensor] | None:
        """Return ``(up, down)`` with ``delta = scale * up @ down`` exactly, or None for other kinds."""
        return None

    def kronecker_factors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor] | None:
        """Return float32 matrices with ``delta = scale * kron(left, right)``, or None for other kinds."""
        return None

    def matrix(self, device: torch.device | None = None) -> Tensor:
        """The whole delta as a float32 matrix ``(out, in)``; refused if it is too large for any memory."""
        check_room(f"the delta of {self.key or 'a layer'}", *self.matrix_shape)
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

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if the delta can be added to a weight of this shape, stored in either direction.

        A weight that the layer widens may be smaller in every dimension.
        """
        if self.padded_to:
            return len(shape) == len(self.padded_to) and all(map(int.__ge__, self.padded_to, shape))
        return self.weight_shape == shape or self.matrix_shape == (*shape[:1], math.prod(shape[1:]))

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
    key: str = ""
    padded_to: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        return self.layout

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

    @property
    def product_rank(self) -> int:
        return self.rank

    def product_factors(self) -> tuple[Tensor, Tensor]:
        return self.up, self.down

    def take_rows(self, index: Index, key: str) -> LowRank:
        return replace(self, up=self.up[index], key=key)

    def scaled(self, factor: float) -> LowRank:
        return replace(self, scale=self.scale * factor)


class BaseDependent(WeightAdapter):
    """An adapter of one weight whose change depends on the weight itself, such as a DoRA."""

    @property
    def is_optional(self) -> bool:
        """True if a model may lack this weight and still be the right one."""
        return False

    @abstractmethod
    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True if it was made for a weight ``(out, in, *kernel)`` or ``(out,)`` of this shape."""

    @abstractmethod
    def change(self, weight: Tensor, reader: str) -> Tensor:
        """What is added to a float32 weight ``(out, in, *kernel)`` or ``(out,)`` at strength 1, likewise.

        ``reader`` is the program whose arithmetic is followed where programs differ, one of ``READERS``.
        """
