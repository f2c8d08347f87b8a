"""(IA)3 without the base model: a linear merge of factors of rows and columns is again such factors.

LoRA Alloy adds differences, so weights ``w`` and factors ``l`` give ``1 + sum w (l - 1)``. PEFT's own
``add_weighted_adapter`` gives ``sum w l``: the same where the weights sum to 1 and every adapter has the
layer. An adapter without the layer leaves it unchanged here; in PEFT it counts as a factor of 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..adapters import Ia3
from ..errors import IncompatibleLoraError
from ..lora import Lora
from .request import Request


def merge_ia3(loras: list[Lora], request: Request) -> tuple[list[Lora], dict[str, Ia3]]:
    """Return the LoRAs without their (IA)3 layers, and those layers merged by name.

    The LoRAs are returned unchanged, with nothing merged, if the method is not ``linear`` or if they hold
    other adapters that need the base model.

    Raises:
        IncompatibleLoraError: if LoRAs have different factors for a layer, or adapt it in different ways.
    """
    if request.combination_type is not None or request.settings.method.name != "linear":
        return loras, {}
    if not all(isinstance(adapter, Ia3) for lora in loras for adapter in lora.base_dependent.values()):
        return loras, {}
    merged: dict[str, Ia3] = {}
    for name in dict.fromkeys(name for lora in loras for name in lora.base_dependent):
        holders = [i for i, lora in enumerate(loras) if name in lora.base_dependent]
        other = next((lora for lora in loras if name in lora.layers or name in lora.whole_weights), None)
        if other is not None:
            raise IncompatibleLoraError(
                f"{name} is scaled by {loras[holders[0]].name} and changed in another way by {other.name}; "
                "give the base model as base= to merge both"
            )
        scale = request.settings.scale
        weights = [scale * request.weight(i, name) * request.block_strength(i, name) for i in holders]
        merged[name] = _merge_layer(name, [loras[i] for i in holders], weights)
    return [
        replace(lora, base_dependent={}, origin=lora.origin or lora) if lora.base_dependent else lora
        for lora in loras
    ], merged


def _merge_layer(name: str, loras: list[Lora], weights: list[float]) -> Ia3:
    parts = [part for lora in loras if isinstance(part := lora.base_dependent[name], Ia3)]
    first = parts[0]
    for lora, part in zip(loras, parts, strict=True):
        if part.added.shape != first.added.shape or part.by_input != first.by_input:
            raise IncompatibleLoraError(
                f"{name} has {first.added.numel()} factors in {loras[0].name} and {part.added.numel()} in "
                f"{lora.name}, or one scales inputs and the other outputs; they were trained on different "
                "base models"
            )
    values = torch.stack([w * part.added.to(torch.float64) for w, part in zip(weights, parts, strict=True)])
    # sorted, so that the order of the LoRAs does not matter to the last bit
    return replace(first, added=values.sort(dim=0).values.sum(dim=0).to(torch.float32))
