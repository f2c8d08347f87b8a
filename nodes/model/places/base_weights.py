"""Adapters whose change depends on the base weight, bound to the weights of a ComfyUI model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ....merge_ops.errors import IncompatibleLoraError
from ....merge_ops.lora import Lora
from ....merge_ops.merging.bind import bind
from ..target import Target
from .key_maps import KeyMaps
from .packed import is_readable
from .split_fused import Places

ReadWeight = Callable[[str, Target], torch.Tensor]


def bind_to_model(loras: list[Lora], places: list[Places], maps: KeyMaps) -> list[Lora]:
    """Turn base-dependent adapters into layers of this model, computed as ComfyUI computes them.

    ``places`` are the targets of each LoRA by layer name. Adapters of a part that is not connected, or of
    weights that the model lacks, are listed as unmerged.

    Raises:
        IncompatibleLoraError: for a weight that the model keeps packed and that ComfyUI does not unpack.
    """
    if not any(lora.base_dependent or lora.whole_weights for lora in loras):
        return loras
    return [
        _bind_one(lora, pieces, _weight_reader(lora.name, maps))
        for lora, pieces in zip(loras, places, strict=True)
    ]


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
        weights = [read_weight(name, target) for target in pieces.get(name, ())]
        return torch.cat(weights) if len(weights) > 1 else weights[0] if weights else None

    (bound,) = bind([rest], read, "comfyui")
    return bound


def _weight_reader(lora: str, maps: KeyMaps) -> ReadWeight:
    """Return a function that reads the unpatched weight of a target, dequantised where the model can."""

    def read_weight(name: str, target: Target) -> torch.Tensor:
        stored = maps.stored[target.key]
        weight = stored.weight if stored.convert is None else stored.convert(stored.weight, inplace=False)
        weight = weight.detach()
        if not is_readable(weight, maps.shapes[target.key]):
            raise IncompatibleLoraError(
                f"{lora}: what {name} changes depends on the weight of the model, which is packed "
                f"({type(weight).__name__}) and cannot be read; load the model in another format, such as "
                "fp16 or fp8"
            )
        if target.part is not None:
            weight = weight.narrow(*target.part)
        # such functions swap halves, so they also turn the weight into the order of the LoRA
        return weight if target.function is None else target.function(weight)

    return read_weight
