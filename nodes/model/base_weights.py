"""Adapters whose change depends on the base weight, beside the weights of a ComfyUI model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ...merge_ops.lora import Lora
from ...merge_ops.merging.bind import bind
from .fused import Target, key_of
from .key_maps import KeyMaps

Weights = Callable[[Target], torch.Tensor]


def bound_to(loras: list[Lora], maps: KeyMaps, model: ModelPatcher | None, clip: Any | None) -> list[Lora]:
    """The LoRAs with their base-dependent adapters as layers of this model, as ComfyUI computes them.

    Those of a part that is not connected, or that the model has not, are listed as unmerged.
    """
    if not any(lora.base_dependent or lora.whole_weights for lora in loras):
        return loras
    weights = _weights(
        [patcher for patcher in (model, clip.patcher if clip is not None else None) if patcher]
    )
    return [_bound(lora, maps, weights) for lora in loras]


def _bound(lora: Lora, maps: KeyMaps, weights: Weights) -> Lora:
    targets = maps.targets({**lora.layers, **lora.whole_weights, **lora.base_dependent})
    reason = "needs the weight of a part that is not connected, or that this model has not"
    absent = {
        name: f"{adapter.kind}, which {reason}"
        for name, adapter in lora.base_dependent.items()
        if name not in targets
    }
    present = {name: adapter for name, adapter in lora.base_dependent.items() if name in targets}
    left = replace(lora, base_dependent=present, unmerged=lora.unmerged | absent)
    (found,) = bind([left], lambda name: weights(targets[name]) if name in targets else None, "comfyui")
    return found


def _weights(patchers: list[ModelPatcher]) -> Weights:
    """The unpatched weight of a target, dequantised where the model has a way to do it."""
    known: dict[str, list[Any]] = {}
    for patcher in patchers:
        known |= patcher.get_key_patches()

    def weight(target: Target) -> torch.Tensor:
        stored, convert = known[key_of(target)][0]
        found: torch.Tensor = convert(stored, inplace=False)
        found = found.detach()
        if isinstance(target, str):
            return found
        rows = found if target[1] is None else found.narrow(*target[1])
        return target[2](rows) if len(target) == 3 else rows  # such functions swap halves, and back

    return weight
