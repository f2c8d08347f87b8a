"""LoRAs of parameters with one matrix an expert (PEFT's ``target_parameters``), as one layer an expert.

The layers of the parameter ``experts.down_proj`` are called ``experts.down_proj[0]``,
``experts.down_proj[1]`` and so on, each a low-rank pair ``(out, in)`` whichever way round the model stores
it. So every method takes an expert as a matrix of its own: TIES trims each by itself. PEFT stacks them:
``lora_A`` is ``(experts * r, in)``, expert by expert, and ``lora_B`` is ``(out, r * experts)``, in which
neighbours are experts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import LoraFormatError, MergeError
from ..types import LowRank
from .adapters import low_rank
from .module import RawModule
from .peft_config import rank_from_config, scale_from_config

_NESTED = ".base_layer"
_PREFIX = "base_model.model."
_NAME = re.compile(r"(?P<parameter>.+)\[(?P<expert>\d+)\]")
# PEFT wraps the parameters of a module one around another in the order in which the model has them, and its
# files do not say which is which; all models of transformers have these in this order
_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def expert_layers(modules: dict[str, RawModule], config: dict[str, Any], file: str) -> dict[str, LowRank]:
    """Take the modules of targeted parameters out of ``modules``, and return their layers by stem.

    Raises:
        LoraFormatError: if it is not known which parameter a module is, or its ranks do not fit.
    """
    targets = [str(target) for target in config.get("target_parameters") or []]
    depths: dict[str, dict[int, str]] = defaultdict(dict)
    for stem in modules if targets else ():
        path = stem
        while path.endswith(_NESTED):
            path = path.removesuffix(_NESTED)
        depths[path][(len(stem) - len(path)) // len(_NESTED)] = stem
    layers: dict[str, LowRank] = {}
    for path, stems in depths.items():
        names = _parameters(path.removeprefix(_PREFIX), targets, stems, modules, config)
        if not names:
            continue
        if sorted(stems) != list(range(len(names))) or (len(names) > 1 and not set(names) <= set(_ORDER)):
            raise LoraFormatError(
                f"{file}: {path} holds LoRAs of {len(stems)} parameters ({', '.join(names)}), and nothing "
                "says which is which; only the parameters of transformers' experts are known"
            )
        for depth, name in enumerate(reversed(names)):
            layers |= _split(f"{path}.{name}", modules.pop(stems[depth]), config, file)
    return layers


def _parameters(
    path: str,
    targets: list[str],
    stems: dict[int, str],
    modules: dict[str, RawModule],
    config: dict[str, Any],
) -> list[str]:
    """The targeted parameters of a module, the innermost first."""
    names = set()
    for target in targets:
        parent, _, name = target.rpartition(".")
        if parent and f".{path}".endswith(f".{parent}"):
            names.add(name)
        elif not parent and all(
            _is_stacked(f"{path}.{name}", modules[stem], config) for stem in stems.values()
        ):
            names.add(name)
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def _is_stacked(parameter: str, module: RawModule, config: dict[str, Any]) -> bool:
    down = module.tensors.get("down")
    return down is not None and down.shape[0] > rank_from_config(config, parameter)


def _split(stem: str, module: RawModule, config: dict[str, Any], file: str) -> dict[str, LowRank]:
    path, whole = stem.removeprefix(_PREFIX), low_rank(module, 1.0, file)
    rank = rank_from_config(config, path)
    if whole.rank % rank:
        raise LoraFormatError(
            f"{file}: {stem} has {whole.rank} rows, which are not experts of rank {rank} each"
        )
    experts, scale = whole.rank // rank, scale_from_config(config, path, rank)
    if experts == 1:
        stem = stem.removesuffix(".weight")
        return {stem: replace(whole, scale=scale, key=stem)}
    ups = whole.up.reshape(-1, rank, experts).permute(2, 0, 1).contiguous()
    downs = whole.down.reshape(experts, rank, -1)
    names = [f"{stem}[{index}]" for index in range(experts)]
    return {
        name: LowRank(up, down, scale, key=name) for name, up, down in zip(names, ups, downs, strict=True)
    }


def expert_of(layer: str) -> tuple[str, int] | None:
    """The parameter and the number of the expert that a layer or stem is; None for any other."""
    found = _NAME.fullmatch(layer)
    return (found["parameter"], int(found["expert"])) if found else None


def at_one_rank(layers: dict[str, LowRank]) -> dict[str, LowRank]:
    """The layers, with zeros added where an expert has a smaller rank than another of its parameter."""
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        if found := expert_of(name):
            ranks[found[0]] = max(ranks.get(found[0], 0), layer.rank)
    padded = dict(layers)
    for name, layer in layers.items():
        more = ranks[found[0]] - layer.rank if (found := expert_of(name)) else 0
        if more:
            padded[name] = replace(layer, up=pad(layer.up, (0, more)), down=pad(layer.down, (0, 0, 0, more)))
    return padded


def stacked(layers: dict[str, LowRank]) -> dict[str, Tensor]:
    """The tensors of a PEFT folder for the layers of experts, which are given by stem.

    Raises:
        MergeError: if experts of a parameter are missing, or the order of parameters is not known.
    """
    grouped: dict[str, dict[int, LowRank]] = defaultdict(dict)
    for stem, layer in layers.items():
        if found := expert_of(stem):
            grouped[found[0]][found[1]] = layer
    tensors: dict[str, Tensor] = {}
    for parameter, experts in grouped.items():
        if sorted(experts) != list(range(len(experts))):
            raise MergeError(f"{parameter} is left with some of its experts, which a PEFT folder cannot say")
        module, _, name = parameter.rpartition(".")
        others = [other.rpartition(".")[2] for other in grouped if other.rpartition(".")[0] == module]
        if len(others) > 1 and not set(others) <= set(_ORDER):
            raise MergeError(f"{module}: nothing says in which order PEFT wraps {', '.join(others)}")
        outside = sum(_ORDER.index(other) > _ORDER.index(name) for other in others) if len(others) > 1 else 0
        key, ordered = module + _NESTED * outside, [experts[index] for index in range(len(experts))]
        tensors[f"{key}.lora_A.weight"] = torch.cat([layer.down for layer in ordered])
        tensors[f"{key}.lora_B.weight"] = torch.stack([layer.up for layer in ordered], dim=-1).flatten(1)
    return tensors
