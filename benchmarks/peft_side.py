"""PEFT's side: a model of linear layers with the same LoRAs, and its own ``add_weighted_adapter``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft.tuners.lora.model as lora_model
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from merge_ops import Lora

from .inputs import DENSITY

TARGETS = ["proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
_NAME = "merged"


class PeftSide:
    """The same LoRAs as PEFT adapters, as PEFT loads them: float16 files become float32 adapters."""

    def __init__(self, loras: list[Lora]) -> None:
        first = loras[0]
        self.names = [lora.name for lora in loras]
        self.rank = first.rank
        network = nn.Module()
        for name, layer in first.layers.items():
            _place(network, name.removeprefix("unet."), *layer.matrix_shape)
        scale = next(iter(first.layers.values())).scale
        config = LoraConfig(
            r=self.rank, lora_alpha=scale * self.rank, target_modules=TARGETS, inference_mode=True
        )
        self.model: Any = get_peft_model(network, config, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.model.add_adapter(name, config)
        for lora in loras:
            for name, layer in lora.layers.items():
                up, down = self.factors(name, lora.name)
                up.copy_(layer.up)
                down.copy_(layer.down)

    def merge(self, combination_type: str, weights: list[float]) -> None:
        """Merge with PEFT; the result stays in the model until ``drop``."""
        with torch.no_grad():
            self.model.add_weighted_adapter(
                self.names, weights, _NAME, combination_type, svd_rank=self.rank, density=DENSITY
            )

    def drop(self) -> None:
        """Remove the merged adapter, if there is one."""
        if _NAME in self.model.peft_config:
            self.model.delete_adapter(_NAME)

    def factors(self, name: str, adapter: str = _NAME) -> tuple[Tensor, Tensor]:
        """Return ``(up, down)`` of one layer of an adapter."""
        layer = self.model.base_model.model.get_submodule(name.removeprefix("unet."))
        return layer.lora_B[adapter].weight.data, layer.lora_A[adapter].weight.data

    def merged(self, name: str) -> tuple[Tensor, Tensor]:
        """Return ``(up, down)`` of the result, with its scale in ``up``."""
        up, down = self.factors(name)
        layer = self.model.base_model.model.get_submodule(name.removeprefix("unet."))
        return up * layer.scaling[_NAME], down

    def held_bytes(self, name: str) -> int:
        """Return the bytes that the result of one layer keeps alive; views keep their whole storage."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.factors(name))


def _place(network: nn.Module, name: str, rows: int, columns: int) -> None:
    """Put a linear layer at a dotted name. Its weight is a single zero, since a merge never reads it."""
    *path, last = name.split(".")
    for part in path:
        if part not in network._modules:
            network.add_module(part, nn.Module())
        network = network.get_submodule(part)
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.zeros(1).expand(rows, columns), requires_grad=False)
    network.add_module(last, linear)


@contextmanager
def recorded(combination_type: str) -> Iterator[list[Tensor]]:
    """Record the full delta that PEFT merges at random before its SVD; its error is relative to it."""
    method = combination_type.removesuffix("_svd")
    deltas: list[Tensor] = []
    if not method.startswith("dare"):
        yield deltas
        return
    real: Callable[..., Tensor] = getattr(lora_model, method)

    def recording(*args: Any, **more: Any) -> Tensor:
        deltas[:] = [real(*args, **more)]
        return deltas[0]

    setattr(lora_model, method, recording)
    try:
        yield deltas
    finally:
        setattr(lora_model, method, real)
