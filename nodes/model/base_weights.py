"""Adapters whose change depends on the base weight, bound to the weights of a ComfyUI model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...merge_ops.lora import Lora
from ...merge_ops.merging.bind import bind
from .split_fused import Places
from .target import Target

ReadWeight = Callable[[Target], torch.Tensor]


def bind_to_model(
    loras: list[Lora], places: list[Places], model: ModelPatcher | None, clip: Any | None
) -> list[Lora]:
    """Turn base-dependent adapters into layers of this model, computed as ComfyUI computes them.

    Adapters of a part that is not connected, or of weights that the model lacks, are listed as unmerged.
    """
    if not any(lora.base_dependent or lora.whole_weights for lora in loras):
        return loras
    patchers = [model, clip.patcher if clip is not None else None]
    read_weight = _weight_reader([patcher for patcher in patchers if patcher])
    return [_bind_one(lora, targets, read_weight) for lora, targets in zip(loras, places, strict=True)]


def _bind_one(lora: Lora, pieces: Places, read_weight: ReadWeight) -> Lora:
    reason = "needs the weight of a part that is not connected, or that this model does not have"
    absent = {
        name: f"{adapter.kind}, which {reason}"
        for name, adapter in lora.base_dependent.items()
        if name not in pieces
    }
    present = {name: adapter for name, adapter in lora.base_dependent.items() if name in pieces}
    rest = replace(lora, base_dependent=present, unmerged=lora.unmerged | absent)

    def read(name: str) -> torch.Tensor | None:
        weights = [read_weight(target) for target in pieces.get(name, ())]
        return torch.cat(weights) if len(weights) > 1 else weights[0] if weights else None

    (bound,) = bind([rest], read, "comfyui")
    return bound


def _weight_reader(patchers: list[ModelPatcher]) -> ReadWeight:
    """Return a function that reads the unpatched weight of a target, dequantised where the model can."""
    known: dict[str, list[Any]] = {}
    for patcher in patchers:
        known |= patcher.get_key_patches()

    def read_weight(target: Target) -> torch.Tensor:
        stored, convert = known[target.key][0]
        weight: torch.Tensor = convert(stored, inplace=False).detach()
        if target.part is not None:
            weight = weight.narrow(*target.part)
        # such functions swap halves, so they also turn the weight into the order of the LoRA
        return weight if target.function is None else target.function(weight)

    return read_weight
