"""How numbers are stored in the weights of a model: plain, fp8 with a scale, or packed, which is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LoraFormatError
from .header import Entry
from .tensor_file import TensorFile

# ends of keys beside ``module.weight`` that hold its scale; ComfyUI's old and new name
_SCALES = ("scale_weight", "weight_scale")
# of scales of inputs and of marks, which change no weight
_IGNORED = ("scale_input", "input_scale", "comfy_quant", "k_scale", "v_scale")
_MARKS = ("scaled_fp8",)
_PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
# ends of keys that only packed weights have -> who packs so
_PACKED = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ, AWQ or SVDQuant",
    ".qzeros": "GPTQ or AWQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_2": "NVFP4",
    ".weight_scale_inv": "fp8 with a scale for each block",
    ".pre_quant_scale": "a format with scales of inputs",
}
_WAY_OUT = "extract from the model in fp32, fp16, bf16 or fp8"


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Some rows of a tensor of a file, from ``start`` on; if ``is_turned``, the columns of a weight."""

    file: TensorFile
    key: str
    start: int
    rows: int
    is_turned: bool = False

    @property
    def entry(self) -> Entry:
        """The tensor in the header of its file."""
        return self.file.entries[self.key]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = (self.rows, *self.entry.shape[1:]) if self.entry.shape else ()
        return shape[::-1] if self.is_turned else shape


def is_number(entry: Entry) -> bool:
    """Return True for a tensor of floating-point numbers, as every weight is."""
    return entry.dtype in _PLAIN


def is_scale(key: str, keys: Container[str]) -> bool:
    """Return True for a tensor that belongs to another one: its scale, or a mark of how it is stored."""
    stem, _, last = key.rpartition(".")
    return last in _MARKS or (last in (*_SCALES, *_IGNORED) and f"{stem}.weight" in keys)


def refuse_packed(file: TensorFile) -> None:
    """Refuse a file with a weight that is not stored as floating-point numbers.

    Raises:
        LoraFormatError: naming the first such weight and the format.
    """
    for key, entry in file.entries.items():
        maker = next((name for end, name in _PACKED.items() if key.endswith(end)), None)
        maker = "bitsandbytes" if ".quant_state." in key else maker
        if maker is not None:
            raise LoraFormatError(f"{key} shows that the weights are packed by {maker}; {_WAY_OUT}")
        if key.endswith(".weight") and entry.dtype not in _PLAIN:
            form = _form_of(file, key)
            raise LoraFormatError(f"{key} is packed ({form or entry.dtype}); {_WAY_OUT}")


def rows_of(stored: Stored) -> Callable[[], Callable[[int, int], Tensor]]:
    """Return what opens a weight: a function that returns one that reads its rows, with its scale.

    Raises:
        LoraFormatError: when it is opened, if the scale is one of blocks.
    """

    def opened() -> Callable[[int, int], Tensor]:
        scale = _scale_of(stored)
        if stored.is_turned:
            whole = stored.file.read(stored.key, stored.start, stored.start + stored.rows).T
            return lambda first, last: _scaled(whole[first:last], scale, first, last)

        def read(first: int, last: int) -> Tensor:
            begin, end = stored.start + first, stored.start + min(last, stored.rows)
            return _scaled(stored.file.read(stored.key, begin, end), scale, begin, end)

        return read

    return opened


def _scale_of(stored: Stored) -> Tensor | None:
    """The scale of a weight, as one number or one for each row; None where it has none."""
    stem, _, last = stored.key.rpartition(".")
    file = stored.file
    key = next((k for end in _SCALES if (k := f"{stem}.{end}") in file.entries), None)
    if last != "weight" or key is None:
        return None
    entry, rows = file.entries[key], stored.entry.shape[0]
    if entry.dtype not in _PLAIN or file.read(key).numel() not in (1, rows):
        raise LoraFormatError(
            f"{file.path.name}: {key} holds a scale for each block of the weight, which cannot be read here; "
            f"{_WAY_OUT}"
        )
    return file.read(key).to(torch.float32).flatten()


def _scaled(rows: Tensor, scale: Tensor | None, first: int, last: int) -> Tensor:
    if scale is None:
        return rows
    own = scale if scale.numel() == 1 else scale[first:last]
    return rows.to(torch.float32) * own.view(-1, *(1 for _ in rows.shape[1:]))


def _form_of(file: TensorFile, key: str) -> str:
    """The name of a format as ComfyUI writes it beside a weight; empty if there is none."""
    mark = f"{key.removesuffix('.weight')}.comfy_quant"
    if mark not in file.entries:
        return ""
    try:
        stated = json.loads(bytes(file.read(mark).tolist()))
    except (ValueError, TypeError, RecursionError):
        return ""
    return str(stated.get("format", "")) if isinstance(stated, dict) else ""
