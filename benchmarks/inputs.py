"""Seeded random LoRAs, as records and as files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from merge_ops import Lora, LowRank

from .sdxl import TEXT_ENCODERS, Layer

RANK, DENSITY = 16, 0.5
SCALE = 0.5  # alpha / rank; not 1, so that a lost scale shows up in the errors
_MULTIPLIERS = (0.8, 0.6, -0.5, 0.4, 0.7, -0.3, 0.9, 0.2)


def multipliers(count: int) -> list[float]:
    """Return the weights of a merge of ``count`` LoRAs; about one in four is negative."""
    return list(_MULTIPLIERS[:count])


def make_loras(layers: Iterable[Layer], count: int, rank: int = RANK) -> list[Lora]:
    """Make ``count`` LoRAs in float16. A layer's factors depend only on the LoRA and the layer's name."""
    layers = list(layers)
    return [
        Lora(f"lora{index}", {_in_model(layer): _random(layer, index, rank) for layer in layers})
        for index in range(count)
    ]


def _in_model(layer: Layer) -> str:
    return layer.name if layer.name.startswith(TEXT_ENCODERS) else f"unet.{layer.name}"


def _random(layer: Layer, index: int, rank: int) -> LowRank:
    seed = int.from_bytes(layer.name.encode()[-40:], "big") % (2**31) + 7919 * index
    generator = torch.Generator().manual_seed(seed)
    fall = torch.arange(1, rank + 1) ** -0.5  # a decaying spectrum, as in trained LoRAs
    up = torch.randn(layer.rows, rank, generator=generator) * fall * 0.05
    down = torch.randn(rank, layer.columns, generator=generator) * 0.05
    return LowRank(up.half(), down.half(), SCALE, key=layer.name)


def fresh(loras: list[Lora]) -> list[Lora]:
    """Copy the LoRAs to new objects and memory, so that nothing about them can be cached."""
    return [
        replace(
            lora, layers={n: replace(x, up=x.up.clone(), down=x.down.clone()) for n, x in lora.layers.items()}
        )
        for lora in loras
    ]


def write_kohya(lora: Lora, path: Path) -> Path:
    """Write a LoRA under kohya's names."""
    tensors: dict[str, Tensor] = {}
    for name, layer in lora.layers.items():
        stem = "lora_" + name.replace(".", "_")
        tensors[f"{stem}.lora_up.weight"] = layer.up
        tensors[f"{stem}.lora_down.weight"] = layer.down
        tensors[f"{stem}.alpha"] = torch.tensor(layer.scale * layer.rank)
    save_file(tensors, path)
    return path
