"""From a file's tensors to layers: which tensor plays which role, and what kind of adapter a module holds."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..types import Layer, Layout, LowRank
from .container import is_packed
from .lycoris import full, loha, lokr
from .module import RawModule, alpha_of

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
    ".diff": "diff",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
}

# suffix of a key -> the kind of adapter that it shows, for those that cannot be merged from factors yet
_OTHER_KINDS = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    **{f".{part}.weight": "GLoRA" for part in ("a1", "a2", "b1", "b2", "bm")},
    ".oft_blocks": "OFT",
    ".oft_diag": "OFT",
    ".oft_R.weight": "OFT",
    ".boft_R": "BOFT",
    ".boft_s": "BOFT",
    ".ia3_l": "(IA)3",
    ".on_input": "(IA)3",
    ".diff_b": "bias difference",
    ".w_norm": "norm difference",
    ".b_norm": "norm difference",
    ".set_weight": "replaced weight",
    ".reshape_weight": "reshaped weight",
    ".lora_B.bias": "bias of a LoRA",
    ".lora_up.bias": "bias of a LoRA",
}
# these add to a module and leave its other tensors as they are
_ON_THE_SIDE = {"bias of a LoRA", "bias difference"}
_SUFFIXES = sorted((*_ROLES, *_OTHER_KINDS), key=len, reverse=True)


def group_by_module(tensors: dict[str, Tensor], file: str) -> tuple[dict[str, RawModule], list[str]]:
    """Modules by stem, and the keys whose suffix means nothing to us."""
    modules: dict[str, RawModule] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        suffix = _suffix_of(key)
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
    """Why a module cannot be merged yet, or None if it can."""
    if module.other_kinds - _ON_THE_SIDE or (module.other_kinds and not module.tensors):
        return f"{' + '.join(sorted(module.other_kinds))} is not merged yet"
    if set(module.tensors) == {"alpha"}:
        return "an alpha without the factors it belongs to"
    if "diff" in module.tensors and module.tensors["diff"].ndim < 2:
        return "full difference of a vector is not merged yet"
    return None


def reasons_on_the_side(module: RawModule) -> dict[str, str]:
    """What stands beside a module that is merged and is left out itself, by the last part of its name."""
    kinds = sorted(module.other_kinds & _ON_THE_SIDE)
    return {"bias": f"{' + '.join(kinds)} is not merged yet"} if kinds else {}


def layer_of(module: RawModule, scale: float | None, file: str, transposed: bool = False) -> Layer:
    """The module as a layer; ``scale`` None: as the file's own alpha says."""
    kinds = {_kind_of(role) for role in module.tensors} - {"alpha"}
    if len(kinds) > 1:
        raise LoraFormatError(
            f"{file}: {module.stem} is of two kinds at once ({', '.join(sorted(kinds))}); keep one of them"
        )
    if kinds == {"LoHa"}:
        return loha(module, scale, file)
    if kinds == {"LoKr"}:
        return lokr(module, scale, file)
    if kinds == {"full difference"}:
        return full(module, file)
    return low_rank(module, scale, file, transposed)


def _kind_of(role: str) -> str:
    if role.startswith("hada_"):
        return "LoHa"
    if role.startswith("lokr_"):
        return "LoKr"
    return {"diff": "full difference", "alpha": "alpha"}.get(role, "LoRA")


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
    _check_pair(up, down, t.get("mid"), module.stem, file)
    kernel = tuple(down.shape[2:]) if "mid" not in t else tuple(t["mid"].shape[2:])
    layout: Layout = (
        "embedding" if embedding else "conv" if kernel else "fan_in_fan_out" if transposed else "linear"
    )
    rank = down.shape[0]
    if scale is None:
        scale = alpha_of(module, file, rank)
    flat = down.flatten(1) if "mid" not in t else _with_core(t["mid"], down)
    return LowRank(up.flatten(1), flat, scale, layout, kernel, module.stem)


def _check_pair(up: Tensor, down: Tensor, mid: Tensor | None, stem: str, file: str) -> None:
    shapes = f"up {tuple(up.shape)}, down {tuple(down.shape)}"
    if up.ndim < 2 or down.ndim < 2:
        raise LoraFormatError(f"{file}: the factors of {stem} are not matrices: {shapes}")
    for factor in (up, down) if mid is None else (up, down, mid):
        if not factor.dtype.is_floating_point or is_packed(factor.dtype):
            raise LoraFormatError(
                f"{file}: {stem} is stored as {factor.dtype}; quantised adapters are not supported"
            )
    inner = (up.shape[1], down.shape[0])
    fits = inner[0] == inner[1] if mid is None else mid.ndim > 2 and tuple(mid.shape[:2]) == inner
    if not fits or up.flatten(1).shape[1] != up.shape[1] or 0 in up.shape or 0 in down.shape:
        raise LoraFormatError(f"{file}: the factors of {stem} do not fit each other: {shapes}")


def _with_core(mid: Tensor, down: Tensor) -> Tensor:
    """Multiply a Tucker core ``(r, r, kh, kw)`` into down: ``(r, in * kh * kw)`` in float32, exact."""
    core = mid.to(torch.float32)
    return torch.einsum("ab...,bi->ai...", core, down.flatten(1).to(torch.float32)).flatten(1)
