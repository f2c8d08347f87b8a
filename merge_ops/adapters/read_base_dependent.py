"""Adapters whose change depends on the base weight, from the tensors of one module."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layer, is_packed
from ..names.patterns import check_pattern
from . import Dora, Glora, Ia3, InputRotation, Oft, cayley
from .module import RawModule, alpha_of, check_core, check_factors

KINDS = ("GLoRA", "OFT", "OFT of PEFT", "BOFT of PEFT", "(IA)3")


def based(module: RawModule, kind: str, config: dict[str, Any], file: str) -> dict[str, BaseDependent]:
    """The adapters of a module, by what follows its name: ``""`` for its weight, ``.bias`` for its bias.

    ``config`` is that of a PEFT folder; (IA)3 and OFT of PEFT mean nothing without it.
    """
    if kind == "GLoRA":
        return {"": _glora(module, file)}
    if kind == "OFT":
        return {"": _oft(module, file)}
    if kind == "OFT of PEFT":
        return {"": _peft_oft(module, config, file)}
    if kind == "BOFT of PEFT":
        return {"": _peft_boft(module, file)}
    return _ia3(module, config, file)


def dora(layer: Layer, module: RawModule, file: str) -> Dora:
    """The layer with the magnitudes of its module, brought to ``(out, 1)`` or ``(1, in)``."""
    from_peft = "peft_magnitude" in module.tensors
    magnitude = _numbers(module, "peft_magnitude" if from_peft else "magnitude", file)
    sizes = [size for size in magnitude.shape if size != 1]
    if len(sizes) > 1:
        raise LoraFormatError(
            f"{file}: the magnitudes of {module.stem} have the shape {tuple(magnitude.shape)}, not one axis"
        )
    by_rows = from_peft or magnitude.ndim == 1 or magnitude.shape[0] != 1
    flat = magnitude.flatten()
    return Dora(layer, flat[:, None] if by_rows else flat[None], layer.layout, module.stem)


def _glora(module: RawModule, file: str) -> Glora:
    parts = [_numbers(module, name, file) for name in ("a1", "a2", "b1", "b2")]
    core = module.tensors.get("bm")
    check_factors(module, parts if core is None else [*parts, core], file)
    a1, a2, b1, b2 = (part.flatten(1) for part in parts)
    if core is not None:  # (rank, rank, *kernel) between b1 and b2
        check_core(module, core, b1.shape[1], b2.shape[0], file)
        b2 = torch.einsum("ab...,bi->ai...", core.to(torch.float32), b2.to(torch.float32)).flatten(1)
    alpha = alpha_of(module, file, 1) if "alpha" in module.tensors else None
    return Glora(a1, a2, b1, b2, alpha, key=module.stem)


def _oft(module: RawModule, file: str) -> Oft:
    blocks = _numbers(module, "oft_blocks", file)
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2] or 0 in blocks.shape:
        raise LoraFormatError(
            f"{file}: the OFT blocks of {module.stem} have the shape {tuple(blocks.shape)}, not square blocks"
        )
    rescale = _numbers(module, "rescale", file).flatten() if "rescale" in module.tensors else None
    constraint = alpha_of(module, file, 1) if "alpha" in module.tensors else 0.0
    return Oft(blocks, rescale, constraint, key=module.stem)


def _peft_oft(module: RawModule, config: dict[str, Any], file: str) -> InputRotation:
    """PEFT stores what is above the diagonal of each skew matrix, and sums a few terms of Cayley's series."""
    entries = _numbers(module, "oft_R", file).to(torch.float32)
    if entries.ndim != 2 or 0 in entries.shape:
        raise LoraFormatError(f"{file}: oft_R of {module.stem} has the shape {tuple(entries.shape)}")
    size = round((1 + math.sqrt(1 + 8 * entries.shape[-1])) / 2)
    if size * (size - 1) // 2 != entries.shape[1]:
        raise LoraFormatError(f"{file}: oft_R of {module.stem} has the shape {tuple(entries.shape)}")
    rows, columns = torch.triu_indices(size, size, 1)
    skew = entries.new_zeros(entries.shape[0], size, size)
    skew[:, rows, columns] = entries
    skew = skew - skew.mT
    if config.get("coft"):
        eps = config.get("eps", 6e-5)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < 1e30:
            raise LoraFormatError(f"{file}: eps is not a finite number from 0")
        limit = eps / math.sqrt(entries.shape[0])
        norms = skew.flatten(1).norm(dim=1)[:, None, None]
        skew = torch.where(norms <= limit, skew, skew * limit / norms)
    if not config.get("use_cayley_neumann", True):
        return InputRotation(cayley(-skew), key=module.stem)
    terms = config.get("num_cayley_neumann_terms", 5)
    if isinstance(terms, bool) or not isinstance(terms, int) or not 1 <= terms <= 64:
        raise LoraFormatError(f"{file}: num_cayley_neumann_terms is not a number of terms")
    highest = (
        max(terms - 1, 3) if terms > 2 else terms - 1
    )  # as PEFT sums them: the last of several is halved
    power = rotation = torch.eye(size).repeat(entries.shape[0], 1, 1)
    for term in range(1, highest + 1):
        power = power @ skew
        rotation = rotation + power * (1.0 if term == highest > 1 else 2.0)
    return InputRotation(rotation, key=module.stem)


def _peft_boft(module: RawModule, file: str) -> InputRotation:
    blocks, rows = _numbers(module, "boft_R", file), _numbers(module, "boft_s", file)
    if blocks.ndim != 4 or blocks.shape[0] != 1 or blocks.shape[-1] != blocks.shape[-2]:
        raise LoraFormatError(
            f"{file}: boft_R of {module.stem} has the shape {tuple(blocks.shape)}; several butterfly factors "
            "are not supported, since PEFT itself applies them only with its CUDA extension"
        )
    skew = 0.5 * (blocks[0] - blocks[0].mT).to(torch.float32)
    return InputRotation(cayley(-skew), rows.flatten()[:, None], key=module.stem)


def _ia3(module: RawModule, config: dict[str, Any], file: str) -> dict[str, BaseDependent]:
    """LyCORIS trains what is added to 1 and says on which side; PEFT trains the factor, whose shape says it.

    PEFT's factor of the outputs multiplies the bias too.
    """
    factors = _numbers(module, "ia3", file)
    if "on_input" in module.tensors:
        on_input = module.tensors["on_input"]
        if on_input.numel() != 1 or is_packed(on_input.dtype):
            raise LoraFormatError(f"{file}: the on_input of {module.stem} is not one value")
        return {"": Ia3(factors.flatten(), bool(on_input), key=module.stem)}
    added = factors.flatten().to(torch.float32) - 1
    by_input = _is_feedforward(module.stem, config)
    if factors.ndim == 2 and factors.shape[0] != factors.shape[1]:
        by_input = factors.shape[0] == 1
    weight = Ia3(added, by_input, key=module.stem, stored=tuple(factors.shape))
    bias = Ia3(added, False, layout="vector", key=module.stem)
    return {"": weight} if by_input else {"": weight, ".bias": bias}


def _is_feedforward(stem: str, config: dict[str, Any]) -> bool:
    """As PEFT matches module names: a pattern for the whole name, or ends of names."""
    path, modules = stem.removeprefix("base_model.model."), config.get("feedforward_modules") or []
    if isinstance(modules, str):
        check_pattern(modules, "adapter_config.json")
        return re.fullmatch(modules, path) is not None
    if not isinstance(modules, list):
        raise LoraFormatError("adapter_config.json: feedforward_modules is not a list of names")
    return path.endswith(tuple(str(module) for module in modules))


def _numbers(module: RawModule, role: str, file: str) -> Tensor:
    if role not in module.tensors:
        there = ", ".join(sorted(module.tensors))
        raise LoraFormatError(f"{file}: {module.stem} has {there} and no {role}; the file is incomplete")
    tensor = module.tensors[role]
    if not tensor.dtype.is_floating_point or is_packed(tensor.dtype):
        raise LoraFormatError(
            f"{file}: {module.stem} is stored as {tensor.dtype}; quantised adapters are not supported"
        )
    return tensor
