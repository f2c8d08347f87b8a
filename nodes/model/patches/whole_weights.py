"""What a merge puts in place of weights and configurations of a model, as ComfyUI patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ....merge_ops.merging.merged import Merged
from ..configurations import add_configurations
from ..target import Target


class WholeWeightAdapter(WeightAdapterBase):
    """A weight in place of the model's own; not at strength 0, where ComfyUI's ``set`` would put it too."""

    name = "lora_alloy_whole"

    def __init__(self, loaded_keys: set[str], weights: tuple[torch.Tensor]) -> None:
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self, weight: torch.Tensor, key: str, strength: float, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Copy the value into ``weight``."""
        return weight if strength == 0 else weight.copy_(self.weights[0])


def add_whole_weights(patcher: Any, merged: Merged, targets: Mapping[str, Target], strength: float) -> None:
    """Add what a merge puts in place of weights of the model, and the configurations of its modules."""
    whole = {
        targets[name].to_comfyui(): ("set", (weight.value,))
        for name, weight in merged.whole_weights.items()
        if name in targets
    }
    if whole:
        patcher.add_patches(whole, strength)
    add_configurations(patcher, merged, strength)
