"""From a file's tensors to layers: which tensor plays which role, and what kind of adapter a module holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layer, Layout, LowRank, WholeWeight, is_packed
from .module import RawModule, alpha_of, check_core, padded_shape
from .read_base_dependent import KINDS as BASED
from .read_base_dependent import based, dora
from .read_lycoris import full, loha, lokr, vector

# suffix of a key -> role; the longest suffix that fits wins
_ROLES = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    **{f"_lora{stream}.{half}.weight": half for stream in (1, 2) for half in ("down", "up")},  # XLabs
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A": "down",
    ".lora_B": "up",
    ".lora_embedding_A": "embedding_down",
    ".lora_embedding_B": "embedding_up",
    ".lora_embedding_A.default": "embedding_down",
    ".lora_embedding_B.default": "embedding_up",
    ":down": "down",
    ":up": "up",
    ".lora_up.bias": "up_bias",
    ".lora.up.bias": "up_bias",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".reshape_weight": "reshape",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".set_weight": "set",
    ".dora_scale": "magnitude",
    **{
        f".lora_magnitude_vector{end}": "peft_magnitude"
        for end in ("", ".weight", ".default", ".default.weight")
    },
    **{f".{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
    ".oft_blocks": "oft_blocks",
    ".rescale": "rescale",
    ".oft_R.weight": "oft_R",
    ".oft_R.default.weight": "oft_R",
    ".boft_R": "boft_R",
    ".boft_R.default": "boft_R",
    ".boft_s": "boft_s",
    ".boft_s.default": "boft_s",
    ".ia3_l": "ia3",
    ".ia3_l.default": "ia3",
    ".on_input": "on_input",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
}

# suffix of a key -> the kind of adapter that it shows, for those that cannot be merged
_OTHER_KINDS = {
    ".oft_diag": "OFT of an early trainer",
    ".lambda_layer": "T-LoRA",
    ".q_layer.weight": "T-LoRA",
    ".p_layer.weight": "T-LoRA",
}
_SUFFIXES = sorted((*_ROLES, *_OTHER_KINDS), key=len, reverse=True)

# what the roles of a module's weight say about its kind; those of other roles go with any kind
_KIND_OF_ROLE = {
    **dict.fromkeys(("down", "up", "mid", "embedding_down", "embedding_up"), "LoRA"),
    **{role: "LoHa" for role in _ROLES.values() if role.startswith("hada_")},
    **{role: "LoKr" for role in _ROLES.values() if role.startswith("lokr_")},
    **dict.fromkeys(("a1", "a2", "b1", "b2", "bm"), "GLoRA"),
    **dict.fromkeys(("diff", "w_norm"), "full difference"),
    **dict.fromkeys(("oft_blocks", "rescale"), "OFT"),
    "oft_R": "OFT of PEFT",
    **dict.fromkeys(("boft_R", "boft_s"), "BOFT of PEFT"),
    **dict.fromkeys(("ia3", "on_input"), "(IA)3"),
    "set": "replaced weight",
}


# roles that change what a kind means, and the kinds that they are read with
_ONLY_BESIDE = {
    **dict.fromkeys(("magnitude", "peft_magnitude"), ("LoRA", "LoHa", "LoKr", "full difference")),
    "reshape": ("LoRA",),
}


def group_by_module(tensors: dict[str, Tensor], file: str) -> tuple[dict[str, RawModule], list[str]]:
    """Modules by stem, and the keys whose suffix means nothing to us."""
    modules: dict[str, RawModule] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        suffix = _suffix_of(key)
        if suffix is None and f"{key.removesuffix('.weight')}.on_input" in tensors:
            modules.setdefault(key[:-7], RawModule(key[:-7])).tensors["ia3"] = tensor
            continue
        if suffix is None:
            unknown.append(key)
            continue
        stem = key[: -len(suffix)] + (suffix.partition(".")[0] if suffix.startswith("_lora") else "")
        module = modules.setdefault(stem, RawModule(stem))
        if suffix in _OTHER_KINDS:
            module.other_kinds.add(_OTHER_KINDS[suffix])
            continue
        if _ROLES[suffix] in module.tensors:
            raise LoraFormatError(
                f"{file}: {stem} is there in two spellings, one of them {key}; keep one of them"
            )
        module.tensors[_ROLES[suffix]] = tensor
    return modules, unknown


@lru_cache(maxsize=1 << 16)
def _suffix_of(key: str) -> str | None:
    return next((suffix for suffix in _SUFFIXES if key.endswith(suffix)), None)


def reason_not_merged(module: RawModule) -> str | None:
    """Why a module cannot be merged, or None if it can."""
    if module.other_kinds:
        return f"{' + '.join(sorted(module.other_kinds))}, which is not merged"
    lonely = set(module.tensors) - {"alpha"}
    if not lonely:
        return "an alpha without the factors it belongs to"
    if lonely in ({"magnitude"}, {"peft_magnitude"}):
        return "the magnitudes of a DoRA without the factors they belong to"
    return None


def kind_of(module: RawModule, file: str) -> str | None:
    """The kind of adapter that a module's weight has; None if only its bias is adapted.

    Raises:
        LoraFormatError: if it is of two kinds at once.
    """
    kinds = {_KIND_OF_ROLE[role] for role in module.tensors if role in _KIND_OF_ROLE}
    if len(kinds) > 1:
        raise LoraFormatError(
            f"{file}: {module.stem} is of two kinds at once ({', '.join(sorted(kinds))}); keep one of them"
        )
    kind = kinds.pop() if kinds else None
    for role, fitting in _ONLY_BESIDE.items():
        if role in module.tensors and kind not in fitting:
            raise LoraFormatError(
                f"{file}: {module.stem} has the {role} of an adapter beside {kind or 'a bias'}, which is not "
                "merged; convert the file, or leave the module out"
            )
    if {"diff", "w_norm"} <= module.tensors.keys():
        raise LoraFormatError(f"{file}: {module.stem} has both diff and w_norm; keep one of them")
    return kind


def adapters_of(
    module: RawModule, scale: float | None, config: dict[str, Any], file: str
) -> Iterator[tuple[str, Layer | BaseDependent | WholeWeight]]:
    """What a module holds, each with what follows the module's name: ``""`` or ``.bias``.

    ``scale`` None: as the file's own alpha says. ``config`` is that of a PEFT folder.
    """
    kind = kind_of(module, file)
    transposed = bool(config.get("fan_in_fan_out"))
    if kind == "replaced weight":
        yield "", WholeWeight(module.tensors["set"], "a weight that is set (set_weight)", module.stem)
    elif kind in BASED:
        for place, adapter in based(module, kind, config, file).items():
            turned = transposed and not place
            # every kind is a dataclass, which their abstract base cannot say
            yield place, replace(adapter, layout="fan_in_fan_out") if turned else adapter  # type: ignore[type-var]
    elif kind is not None:
        layer = _additive(module, kind, scale, file, transposed)
        is_dora = not module.tensors.keys().isdisjoint(("magnitude", "peft_magnitude"))
        yield "", dora(layer, module, file) if is_dora else layer
    bias = _bias_of(module, scale, file)
    if bias is not None:
        yield ".bias", bias


def _additive(module: RawModule, kind: str, scale: float | None, file: str, transposed: bool) -> Layer:
    if kind == "LoHa":
        return loha(module, scale, file)
    if kind == "LoKr":
        return lokr(module, scale, file)
    if kind == "full difference":
        return full(module, file)
    return low_rank(module, scale, file, transposed)


def _bias_of(module: RawModule, scale: float | None, file: str) -> LowRank | None:
    """What a module adds to its bias, if it does: a trained difference, or the bias of a LoRA's ``up``."""
    t = module.tensors
    found = [role for role in ("up_bias", "diff_b", "b_norm") if role in t]
    if not found:
        return None
    if len(found) > 1:
        raise LoraFormatError(
            f"{file}: {module.stem} changes its bias twice ({', '.join(found)}); keep one of them"
        )
    factor = 1.0
    if found == ["up_bias"] and "down" in t:  # the factors of such a pair are scaled with it
        factor = alpha_of(module, file, t["down"].shape[0]) if scale is None else scale
    return vector(t[found[0]], factor, module, file)


def low_rank(module: RawModule, scale: float | None, file: str, transposed: bool = False) -> LowRank:
    """The module as a LowRank layer; ``scale`` None: the module's alpha over rank, or 1 without alpha."""
    t = module.tensors
    embedding = "embedding_down" in t or "embedding_up" in t
    down, up = (t.get("embedding_down"), t.get("embedding_up")) if embedding else (t.get("down"), t.get("up"))
    if down is None or up is None:
        there, missing = ("up", "down") if down is None else ("down", "up")
        raise LoraFormatError(
            f"{file}: {module.stem} has the {there} half of a pair and not the {missing} half; "
            "the file is incomplete"
        )
    _check_pair(up, down, t.get("mid"), module, file)
    kernel = tuple(down.shape[2:]) if "mid" not in t else tuple(t["mid"].shape[2:])
    layout: Layout = (
        "embedding" if embedding else "conv" if kernel else "fan_in_fan_out" if transposed else "linear"
    )
    rank = down.shape[0]
    if scale is None:
        scale = alpha_of(module, file, rank)
    flat = _with_core(t["mid"], down) if "mid" in t else down.flatten(1)
    widened = padded_shape(module, up.shape[0] * flat.shape[1], file)
    return LowRank(up.flatten(1), flat, scale, layout, kernel, module.stem, widened)


def _check_pair(up: Tensor, down: Tensor, mid: Tensor | None, module: RawModule, file: str) -> None:
    stem, shapes = module.stem, f"up {tuple(up.shape)}, down {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2:
        raise LoraFormatError(f"{file}: the factors of {stem} are not matrices: {shapes}")
    for factor in (up, down) if mid is None else (up, down, mid):
        if not factor.dtype.is_floating_point or is_packed(factor.dtype):
            raise LoraFormatError(
                f"{file}: {stem} is stored as {factor.dtype}; quantised adapters are not supported"
            )
    if mid is not None:
        check_core(module, mid, up.shape[1], down.shape[0], file)
    fits = up.flatten(1).shape[1] == up.shape[1] and (mid is not None or up.shape[1] == down.shape[0])
    if not fits or 0 in up.shape or 0 in down.shape:
        raise LoraFormatError(f"{file}: the factors of {stem} do not fit each other: {shapes}")


def _with_core(mid: Tensor, down: Tensor) -> Tensor:
    """Multiply a Tucker core ``(r, r, kh, kw)`` into down: ``(r, in * kh * kw)`` in float32, exact."""
    core = mid.to(torch.float32)
    return torch.einsum("ab...,bi->ai...", core, down.flatten(1).to(torch.float32)).flatten(1)
