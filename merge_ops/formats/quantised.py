"""Weights of a model that are stored in fewer bits: fp8, with a scale or without, and packed formats.

A scale of fp8 lies beside its weight, as ``X.weight_scale`` or ``X.scale_weight``, and a module may say its
format in ``X.comfy_quant`` or in the metadata of the file. Source: the loaders of ComfyUI 0.33 and the
documentation of bitsandbytes, AutoGPTQ and nunchaku.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from .header import Entry
from .shard import Shard, read_tensor

PLAIN = ("F32", "F16", "BF16", "F64")
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # dtype -> ComfyUI's name of the format
READABLE = (*PLAIN, *FLOAT8, "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # dtypes of numbers that torch can compute with
_SCALES = (".weight_scale", ".scale_weight")
# beside a weight: scales of what a module gets, and marks of how it is stored; they change no number
_MARKS = (".scale_input", ".input_scale", ".k_scale", ".v_scale", ".comfy_quant")
_MARK_OF_FILE = "scaled_fp8"
_BESIDE = (  # end of a tensor beside a packed weight -> the format
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".weight.absmax", "bitsandbytes"),
    (".weight.quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes int8"),
    (".weight_scale_2", "NVFP4"),
    (".weight_s_rel", "W4A8"),
    (".pre_quant_scale", "a format with scales of inputs"),
    (".weight_scale_inv", "fp8 with a scale for each row or block"),
)
_PACKED = (  # end of a tensor -> what the whole file is quantised as; the first that is there counts
    (".wscales", "nunchaku (SVDQuant)"),
    (".wtscale", "nunchaku (SVDQuant)"),
    (".smooth_factor", "nunchaku (SVDQuant)"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "packed integers"),
    (".weight_packed", "compressed-tensors"),
)
_SHOW_PACKED = {".qweight", ".weight_packed"}
_MAX_FORMAT = 1 << 16  # bytes of a module's own statement


class Quantisation:
    """How the weights of one file are stored."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._entries = {entry.name: entry for entry in shard.entries}
        self._formats = _formats_of(shard)

    def scale(self, weight: Entry) -> Entry | None:
        """Return the scale of an fp8 weight; None if it has none."""
        stem, _, last = weight.name.rpartition(".")
        if weight.dtype not in FLOAT8 or last != "weight":
            return None
        return next((self._entries[stem + end] for end in _SCALES if stem + end in self._entries), None)

    def why_not(self, weight: Entry) -> str | None:
        """Return the name of the format of a weight that nothing can be added to; None for any other."""
        reason = self.why_unreadable(weight)
        if reason is not None:
            return reason
        scale = self.scale(weight)
        if weight.dtype not in PLAIN and weight.dtype not in FLOAT8:
            return weight.dtype
        if scale is not None and math.prod(scale.shape) > 1:
            return f"{weight.dtype} with a scale for each row or block"
        return None

    def why_unreadable(self, weight: Entry) -> str | None:
        """Return the format of a weight whose numbers ``read`` cannot tell; None for any other."""
        stem = weight.name.removesuffix(".weight")
        stated = self._stated(stem)
        if stated is not None and stated != FLOAT8.get(weight.dtype):
            return stated
        for end, name in _BESIDE:
            if stem + end in self._entries:
                return name
        if weight.dtype not in READABLE:
            return weight.dtype
        scale = self.scale(weight)
        rows = weight.shape[0] if weight.shape else 1
        if scale is not None and (scale.dtype not in PLAIN or math.prod(scale.shape) not in (1, rows)):
            return f"{weight.dtype} with a scale for each block"
        return None

    def read(self, weight: Entry, first: int = 0, last: int | None = None) -> Tensor:
        """Return the numbers that a weight stands for, or its rows from ``first`` to before ``last``.

        They have the dtype of the tensor; float32 where it has a scale, of all or of each row.

        Raises:
            LoraFormatError: if the file has changed.
        """
        rows = read_tensor(self._shard, weight, first, last)
        entry = self.scale(weight)
        if entry is None:
            return rows
        scale = read_tensor(self._shard, entry).to(torch.float32).flatten()
        if scale.numel() == 1:
            return rows.to(torch.float32) * scale.reshape(())
        return rows.to(torch.float32) * scale[first:last].view(-1, *(1 for _ in rows.shape[1:]))

    def packed(self) -> tuple[str, str] | None:
        """Return the first tensor that shows weights whose numbers ``read`` cannot tell, and their format."""
        whole = packed_format([self._shard])
        for name, entry in self._entries.items():
            if whole is not None and f".{name.rpartition('.')[2]}" in _SHOW_PACKED:
                return name, whole
            beside = next((form for end, form in _BESIDE if name.endswith(end)), None)
            if beside is None and name.endswith(".weight"):
                beside = self.why_unreadable(entry)
            if beside is not None:
                return name, beside
        return None

    def _stated(self, stem: str) -> str | None:
        """The format that the module itself, or the metadata of the file, says it has."""
        entry = self._entries.get(f"{stem}.comfy_quant")
        if entry is None:
            return self._formats.get(stem)
        if entry.end - entry.begin > _MAX_FORMAT:
            raise LoraFormatError(f"{entry.name} is too large; download it again")
        stated = bytearray(entry.end - entry.begin)
        self._shard.read_into(entry, stated)
        try:
            return str(json.loads(stated)["format"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LoraFormatError(f"{entry.name} states no format; download it again") from error


def packed_format(shards: Iterable[Shard]) -> str | None:
    """Return the format of files whose weights are packed under names of their own; None for any other."""
    ends = {f".{entry.name.rpartition('.')[2]}" for shard in shards for entry in shard.entries}
    return next((name for end, name in _PACKED if end in ends), None) if ends & _SHOW_PACKED else None


def is_beside(name: str, names: Container[str]) -> bool:
    """Return True for a tensor that tells how another one is stored: its scale, or a mark of its format."""
    stem, _, last = name.rpartition(".")
    return last == _MARK_OF_FILE or (f".{last}" in (*_SCALES, *_MARKS) and f"{stem}.weight" in names)


def _formats_of(shard: Shard) -> dict[str, str]:
    """Module -> format, from the metadata of a file."""
    text = shard.metadata.get("_quantization_metadata")
    if text is None:
        return {}
    try:
        layers: dict[str, Any] = json.loads(text)["layers"]
        return {name: str(layer["format"]) for name, layer in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoraFormatError(
            f"{shard.path.name}: the metadata state quantised layers that cannot be read; download it again"
        ) from error
