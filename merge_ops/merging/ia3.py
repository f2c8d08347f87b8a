"""(IA)3 without the base model: a linear merge of factors of rows and columns is again such factors.

LoRA Alloy adds differences, so weights ``w`` and factors ``l`` give ``1 + sum w (l - 1)``. PEFT's own
``add_weighted_adapter`` gives ``sum w l``: the same where the weights sum to 1 and every adapter has the
layer. An adapter without the layer leaves it as it is here; in PEFT it counts as a factor of 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..adapters import Ia3
from ..blocks import BlockStrengths
from ..errors import IncompatibleLoraError
from ..lora import Lora
from .lineup import factor_of


def merge_ia3_apart(
    loras: list[Lora], weights: list[float], text_weights: list[float],
    blocks: list[BlockStrengths | None], scale: float,
) -> tuple[list[Lora], dict[str, Ia3]]:  # fmt: skip
    """The LoRAs without their (IA)3, and that merged linearly; as they were if they hold other kinds too.

    Raises:
        IncompatibleLoraError: if a layer has other factors in another LoRA, or is adapted in another way.
    """
    if not all(isinstance(adapter, Ia3) for lora in loras for adapter in lora.base_dependent.values()):
        return loras, {}
    found: dict[str, Ia3] = {}
    for name in dict.fromkeys(name for lora in loras for name in lora.base_dependent):
        holders = [i for i, lora in enumerate(loras) if name in lora.base_dependent]
        other = next((lora for lora in loras if name in lora.layers or name in lora.whole_weights), None)
        if other is not None:
            raise IncompatibleLoraError(
                f"{name} is scaled by {loras[holders[0]].name} and changed in another way by {other.name}; "
                "give the base model as base= to merge both"
            )
        used = text_weights if name.startswith("text_encoder") else weights
        found[name] = _merged(
            name, [loras[i] for i in holders], [scale * used[i] * factor_of(blocks[i], name) for i in holders]
        )
    return [
        replace(lora, base_dependent={}, origin=lora.origin or lora) if lora.base_dependent else lora
        for lora in loras
    ], found


def _merged(name: str, loras: list[Lora], weights: list[float]) -> Ia3:
    parts = [part for lora in loras if isinstance(part := lora.base_dependent[name], Ia3)]
    first = parts[0]
    for lora, part in zip(loras, parts, strict=True):
        if part.added.shape != first.added.shape or part.by_input != first.by_input:
            raise IncompatibleLoraError(
                f"{name} has {first.added.numel()} factors in {loras[0].name} and {part.added.numel()} in "
                f"{lora.name}, or of another side; they were trained on different base models"
            )
    values = torch.stack([w * part.added.to(torch.float64) for w, part in zip(weights, parts, strict=True)])
    # sorted, so that the order of the LoRAs does not matter to the last bit
    return replace(first, added=values.sort(dim=0).values.sum(dim=0).to(torch.float32))
