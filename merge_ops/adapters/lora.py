"""LoRA: a low-rank pair per layer, of linear layers, convolutions and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import Layout, LowRank, is_packed
from .kind import Adapters, Kind
from .module import RawModule, alpha_of, check_core, check_rank, numbers_of, padded_shape, refuse_beside
from .tucker import fold_mid


def low_rank(module: RawModule, scale: float | None, transposed: bool = False) -> LowRank:
    """Return a module's factors as a layer; ``scale`` None means alpha over rank, or 1 without alpha."""
    t = module.tensors
    embedding = "embedding_down" in t or "embedding_up" in t
    refuse_beside(module, "lora_embedding_A", embedding, ("down", "up", "mid"))
    down, up = (t.get("embedding_down"), t.get("embedding_up")) if embedding else (t.get("down"), t.get("up"))
    if down is None or up is None:
        there, missing = ("up", "down") if down is None else ("down", "up")
        raise LoraFormatError(
            f"{module.stem} has the {there} half of a pair and not the {missing} half; the file is incomplete"
        )
    _check_pair(up, down, t.get("mid"), module)
    kernel = tuple(down.shape[2:]) if "mid" not in t else tuple(t["mid"].shape[2:])
    layout: Layout = (
        "embedding" if embedding else "conv" if kernel else "fan_in_fan_out" if transposed else "linear"
    )
    rank = down.shape[0]
    scale_is_known = scale is not None or "alpha" in t
    if scale is None:
        scale = alpha_of(module, rank)
    flat = fold_mid(t["mid"], down) if "mid" in t else down.flatten(1)
    check_rank(module, rank, up.shape[0], flat.shape[1])
    if "singular" in t:
        flat = _with_singular_values(flat, module, scale_is_known)
    widened = padded_shape(module, up.shape[0] * flat.shape[1])
    return LowRank(up.flatten(1), flat, scale, layout, kernel, module.stem, widened)


def _check_pair(up: Tensor, down: Tensor, mid: Tensor | None, module: RawModule) -> None:
    stem, shapes = module.stem, f"up {tuple(up.shape)}, down {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2:
        raise LoraFormatError(f"the factors of {stem} are not matrices: {shapes}")
    for factor in (up, down) if mid is None else (up, down, mid):
        if not factor.dtype.is_floating_point or is_packed(factor.dtype):
            raise LoraFormatError(f"{stem} is stored as {factor.dtype}; quantised adapters are not supported")
    if mid is not None:
        check_core(module, mid, up.shape[1], down.shape[0])
    fits = up.flatten(1).shape[1] == up.shape[1] and (mid is not None or up.shape[1] == down.shape[0])
    if not fits or 0 in up.shape or 0 in down.shape:
        raise LoraFormatError(f"the factors of {stem} do not fit each other: {shapes}")


def _with_singular_values(down: Tensor, module: RawModule, scale_is_known: bool) -> Tensor:
    """AdaLoRA's ``down * E`` in float32; its E has one value for each row of down."""
    values = numbers_of(module, "singular")
    if values.numel() != down.shape[0]:
        raise LoraFormatError(
            f"lora_E of {module.stem} has {values.numel()} values, and its factors have rank {down.shape[0]}"
        )
    if not scale_is_known:
        raise LoraFormatError(
            f"{module.stem} is of an AdaLoRA, whose scale is in adapter_config.json; give the folder with "
            "that file"
        )
    return down.to(torch.float32) * values.to(torch.float32).reshape(-1, 1)


def _read(module: RawModule, scale: float | None, config: Mapping[str, Any]) -> Adapters:
    return {"": low_rank(module, scale, bool(config.get("fan_in_fan_out")))}


LORA = Kind(
    "LoRA",
    {
        ".lora_down.weight": "down",
        ".lora_up.weight": "up",
        ".lora_mid.weight": "mid",
        **{f"_lora.{half}.weight": half for half in ("down", "up")},
        **{f"_lora{stream}.{half}.weight": half for stream in (1, 2) for half in ("down", "up")},  # XLabs
        **{f".lora.{half}.weight": half for half in ("down", "up")},
        **{f".lora_linear_layer.{half}.weight": half for half in ("down", "up")},
        **{f".lora_A{end}": "down" for end in ("", ".weight", ".default", ".default.weight")},
        **{f".lora_B{end}": "up" for end in ("", ".weight", ".default", ".default.weight")},
        **{f".lora_E{end}": "singular" for end in ("", ".default")},  # AdaLoRA's
        **{f".ranknum{end}": "ranknum" for end in ("", ".default")},
        **{f".lora_embedding_A{end}": "embedding_down" for end in ("", ".default")},
        **{f".lora_embedding_B{end}": "embedding_up" for end in ("", ".default")},
        **{f":{half}": half for half in ("down", "up")},  # cloneofsimo's
        ".reshape_weight": "reshape",
    },
    (LowRank,),
    _read,
    extra=frozenset({"reshape", "singular", "ranknum"}),
    rank_roles=("down", "embedding_down"),
    peft_types=("LORA", "ADALORA"),
)
