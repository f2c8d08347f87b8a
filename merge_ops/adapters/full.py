"""Differences stored whole: of weights, and of the vectors that biases and norms are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import Index, Layer, Layout, LowRank, Rows
from .kind import Adapters, Kind
from .module import RawModule, alpha_of, check_factors


@dataclass(frozen=True, eq=False)
class Full(Layer):
    """A weight difference stored in full, ``scale * change``."""

    change: Tensor  # (out, in), the kernel folded into the columns
    scale: float = 1.0
    layout: Layout = "linear"
    kernel: tuple[int, ...] = ()
    key: str = ""
    kind: ClassVar[str] = "full"

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

    @property
    def alpha_scale(self) -> float | None:
        return None

    def rows(self, device: torch.device | None) -> Rows:
        change = self.change.to(device)

        def read(index: Index, out: Tensor | None = None) -> Tensor:
            return torch.mul(change[index].to(torch.float32), self.scale, out=out)

        return read


def take_rows(layer: Layer, index: Index, key: str) -> Layer:
    """Return the layer of some rows of a weight, exactly: of its own kind if that can be cut, else whole."""
    own = layer.take_rows(index, key)
    return Full(layer.rows(None)(index), 1.0, layer.layout, layer.kernel, key) if own is None else own


def join_rows(layers: Sequence[Layer], spans: Sequence[tuple[int, int]], rows: int) -> Layer:
    """Return one layer on a weight of ``rows`` rows from layers on some of its rows, exactly.

    ``spans`` holds the first row of each layer, and the row after its last. The other rows are zero.
    """
    first = layers[0]
    low_rank = [layer for layer in layers if isinstance(layer, LowRank)]
    if len(low_rank) < len(layers):
        whole = torch.zeros(rows, first.matrix_shape[1])
        for layer, (start, end) in zip(layers, spans, strict=True):
            whole[start:end] = layer.matrix(torch.device("cpu"))
        return Full(whole, 1.0, first.layout, first.kernel, first.key)
    pairs = [layer.factors(None) for layer in low_rank]
    up = pairs[0][0].new_zeros(rows, sum(layer.rank for layer in layers))
    column = 0
    for (part, _), (start, end) in zip(pairs, spans, strict=True):
        up[start:end, column : column + part.shape[1]] = part
        column += part.shape[1]
    return LowRank(up, torch.cat([down for _, down in pairs]), 1.0, first.layout, first.kernel, first.key)


def _full(module: RawModule) -> Full | LowRank:
    """Return the stored difference, to which alpha does not apply; for a norm it is a vector."""
    if {"diff", "w_norm"} <= module.tensors.keys():
        raise LoraFormatError(f"{module.stem} has both diff and w_norm; keep one of them")
    change = module.tensors.get("diff", module.tensors.get("w_norm"))
    if change is None:
        raise LoraFormatError(f"{module.stem} has no diff; the file is incomplete")
    if change.ndim == 1:
        return _vector(change, 1.0, module)
    check_factors(module, (change,))
    kernel = tuple(change.shape[2:])
    return Full(change.flatten(1), 1.0, "conv" if kernel else "linear", kernel, module.stem)


def _vector(change: Tensor, scale: float, module: RawModule) -> LowRank:
    """Return the change of a bias or of a norm's weight: a matrix of one column, which has rank 1."""
    if change.ndim != 1:
        raise LoraFormatError(
            f"the change of a bias of {module.stem} has the shape {tuple(change.shape)}, which is not "
            "a vector"
        )
    check_factors(module, (change[:, None],))
    return LowRank(change[:, None], change.new_ones(1, 1), scale, "vector", (), module.stem)


def bias_of(module: RawModule, scale: float | None) -> LowRank | None:
    """Return what a module adds to its bias, if anything: a difference, or the bias of a LoRA's ``up``."""
    t = module.tensors
    roles = [role for role in ("up_bias", "diff_b", "b_norm") if role in t]
    if not roles:
        return None
    if len(roles) > 1:
        raise LoraFormatError(f"{module.stem} changes its bias twice ({', '.join(roles)}); keep one of them")
    factor = 1.0
    if roles == ["up_bias"] and "down" in t:  # alpha scales the whole pair, with its bias
        factor = alpha_of(module, t["down"].shape[0]) if scale is None else scale
    return _vector(t[roles[0]], factor, module)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": _full(module)}


FULL = Kind("full difference", {".diff": "diff", ".w_norm": "w_norm"}, (Full,), _read)


def _read_bias(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    bias = bias_of(module, scale)
    return {} if bias is None else {".bias": bias}


BIAS = Kind(
    "bias",
    {
        **{f"{end}.bias": "up_bias" for end in (".lora_up", ".lora.up", ".lora_B", ".lora_B.default")},
        ".diff_b": "diff_b",
        ".b_norm": "b_norm",
    },
    read=_read_bias,
    goes_with_any=True,
)
