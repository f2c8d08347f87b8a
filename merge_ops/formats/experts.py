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

from ..adapters.lora import low_rank
from ..adapters.module import RawModule
from ..errors import LoraFormatError
from ..lora import LowRank
from .peft_config import rank_from_config, scale_from_config

NESTED = ".base_layer"
_PREFIX = "base_model.model."
_NAME = re.compile(r"(?P<parameter>.+)\[(?P<expert>\d+)\]")
# PEFT wraps the parameters of a module one around another in the order in which the model has them, and its
# files do not say which is which; all models of transformers have these in this order
PARAMETER_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


def expert_layers(modules: dict[str, RawModule], config: dict[str, Any]) -> dict[str, LowRank]:
    """Take the modules of targeted parameters out of ``modules``, and return their layers by stem.

    Raises:
        LoraFormatError: if it is not known which parameter a module is, or its ranks do not fit.
    """
    targets = _targets(config)
    depths: dict[str, dict[int, str]] = defaultdict(dict)
    for stem in modules if targets else ():
        path = stem
        while path.endswith(NESTED):
            path = path.removesuffix(NESTED)
        depths[path][(len(stem) - len(path)) // len(NESTED)] = stem
    layers: dict[str, LowRank] = {}
    for path, stems in depths.items():
        names = _parameters(path.removeprefix(_PREFIX), targets, stems, modules, config)
        if not names:
            continue
        if sorted(stems) != list(range(len(names))) or (
            len(names) > 1 and not set(names) <= set(PARAMETER_ORDER)
        ):
            raise LoraFormatError(
                f"{path} holds LoRAs of {len(stems)} parameters ({', '.join(names)}), and nothing "
                "says which is which; only the parameters of transformers' experts are known"
            )
        for depth, name in enumerate(reversed(names)):
            layers |= _split(f"{path}.{name}", modules.pop(stems[depth]), config)
    return layers


def _parameters(
    path: str,
    targets: dict[str, set[str]],
    stems: dict[int, str],
    modules: dict[str, RawModule],
    config: dict[str, Any],
) -> list[str]:
    """The targeted parameters of a module, the innermost first."""
    names, place = set[str](), 0
    while place < len(path):
        names |= targets.get(path[place:], set())
        place = path.find(".", place) + 1 or len(path)
    for name in targets.get("", ()):
        if all(_is_stacked(f"{path}.{name}", modules[stem], config) for stem in stems.values()):
            names.add(name)
    return sorted(
        names,
        key=lambda name: (
            PARAMETER_ORDER.index(name) if name in PARAMETER_ORDER else len(PARAMETER_ORDER),
            name,
        ),
    )


def _targets(config: dict[str, Any]) -> dict[str, set[str]]:
    """The names of the targeted parameters by the end of their module's path; ``""`` for any module."""
    targets: dict[str, set[str]] = defaultdict(set)
    for target in config.get("target_parameters") or []:
        parent, _, name = str(target).rpartition(".")
        targets[parent].add(name)
    return dict(targets)


def _is_stacked(parameter: str, module: RawModule, config: dict[str, Any]) -> bool:
    down = module.tensors.get("down")
    return down is not None and down.ndim > 0 and down.shape[0] > rank_from_config(config, parameter)


def _split(stem: str, module: RawModule, config: dict[str, Any]) -> dict[str, LowRank]:
    path, whole = stem.removeprefix(_PREFIX), low_rank(module, 1.0)
    rank = rank_from_config(config, path)
    if whole.rank % rank:
        raise LoraFormatError(f"{stem} has {whole.rank} rows, which are not experts of rank {rank} each")
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
    match = _NAME.fullmatch(layer)
    return (match["parameter"], int(match["expert"])) if match else None
