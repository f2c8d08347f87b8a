"""Writing the layers of experts: a PEFT folder stacks the experts of a parameter."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import MergeError
from ..formats.experts import NESTED, PARAMETER_ORDER, expert_of
from ..lora import LowRank


def at_one_rank(layers: dict[str, LowRank]) -> dict[str, LowRank]:
    """Return the layers with all experts of a parameter at one rank, the smaller ones padded with zeros."""
    ranks: dict[str, int] = {}
    for name, layer in layers.items():
        if expert := expert_of(name):
            ranks[expert[0]] = max(ranks.get(expert[0], 0), layer.rank)
    padded = dict(layers)
    for name, layer in layers.items():
        more = ranks[expert[0]] - layer.rank if (expert := expert_of(name)) else 0
        if more:
            padded[name] = replace(layer, up=pad(layer.up, (0, more)), down=pad(layer.down, (0, 0, 0, more)))
    return padded


def stacked(layers: dict[str, LowRank]) -> dict[str, Tensor]:
    """Return the tensors of a PEFT folder for the layers of experts, which are keyed by stem.

    Raises:
        MergeError: if experts of a parameter are missing, or the order of parameters is unknown.
    """
    grouped: dict[str, dict[int, LowRank]] = defaultdict(dict)
    for stem, layer in layers.items():
        if expert := expert_of(stem):
            grouped[expert[0]][expert[1]] = layer
    tensors: dict[str, Tensor] = {}
    for parameter, experts in grouped.items():
        if sorted(experts) != list(range(len(experts))):
            raise MergeError(f"{parameter} has only some of its experts, which a PEFT folder cannot express")
        module, _, name = parameter.rpartition(".")
        others = [other.rpartition(".")[2] for other in grouped if other.rpartition(".")[0] == module]
        if len(others) > 1 and not set(others) <= set(PARAMETER_ORDER):
            raise MergeError(f"{module}: the order in which PEFT wraps {', '.join(others)} is unknown")
        outside = (
            sum(PARAMETER_ORDER.index(other) > PARAMETER_ORDER.index(name) for other in others)
            if len(others) > 1
            else 0
        )
        key, ordered = module + NESTED * outside, [experts[index] for index in range(len(experts))]
        tensors[f"{key}.lora_A.weight"] = torch.cat([layer.down for layer in ordered])
        tensors[f"{key}.lora_B.weight"] = torch.stack([layer.up for layer in ordered], dim=-1).flatten(1)
    return tensors
