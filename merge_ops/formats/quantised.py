"""Weights of a model that are stored in fewer bits: fp8, with a scale or without, and packed formats.

A scale of fp8 lies beside its weight, as ``X.weight_scale`` or ``X.scale_weight``, and a module may say its
format in ``X.comfy_quant`` or in the metadata of the file. Source: the loaders of ComfyUI 0.33 and the
documentation of bitsandbytes, AutoGPTQ and nunchaku.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..errors import LoraFormatError
from .header import Entry
from .shard import Shard

PLAIN = ("F32", "F16", "BF16", "F64")
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # dtype -> ComfyUI's name of the format
_SCALES = (".weight_scale", ".scale_weight")
_BESIDE = (  # end of a tensor beside a packed weight -> the format
    (".weight.quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".weight.quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".SCB", "bitsandbytes int8"),
    (".weight_scale_2", "NVFP4"),
    (".weight_s_rel", "W4A8"),
    (".weight_scale_inv", "fp8 with a scale for each row or block"),
)
_PACKED = (  # end of a tensor -> what the whole file is quantised as; the first that is there counts
    (".wscales", "nunchaku (SVDQuant)"),
    (".wtscale", "nunchaku (SVDQuant)"),
    (".smooth_factor", "nunchaku (SVDQuant)"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "packed integers"),
)
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
        stem = weight.name.removesuffix(".weight")
        stated = self._stated(stem)
        if stated is not None and stated != FLOAT8.get(weight.dtype):
            return stated
        for end, name in _BESIDE:
            if stem + end in self._entries:
                return name
        if weight.dtype not in PLAIN and weight.dtype not in FLOAT8:
            return weight.dtype
        scale = self.scale(weight)
        if scale is not None and (scale.dtype not in PLAIN or scale.end - scale.begin > 8 or not scale.end):
            return f"{weight.dtype} with a scale for each row or block"
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
    return next((name for end, name in _PACKED if end in ends), None) if ".qweight" in ends else None


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
