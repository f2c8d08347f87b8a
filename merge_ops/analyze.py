"""What a LoRA holds, and how LoRAs relate: norms, cosines, conflicts of sign, from the factors alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from .linalg import product_inner
from .lineup import line_up
from .report import sign_conflict
from .types import Layer, Lora, LowRank

_SHOWN = 200  # characters of a metadata value


@dataclass(frozen=True, slots=True)
class BlockComparison:
    """Two LoRAs in one block of the model."""

    block: str
    first: str
    second: str
    layers: int  # that both have
    cosine: float  # of the two deltas, over all shared layers of the block
    sign_conflict: float  # share of the entries in which they have opposite signs


def squared_norm(layer: Layer) -> float:
    """Squared Frobenius norm of a layer's delta."""
    return inner(layer, layer)


def inner(a: Layer, b: Layer) -> float:
    """Frobenius inner product of two deltas of one layer; low-rank ones are not formed."""
    if not (isinstance(a, LowRank) and isinstance(b, LowRank)):
        return float((a.matrix().to(torch.float64) * b.matrix()).sum())
    return a.scale * b.scale * product_inner((a.up, a.down), (b.up, b.down))


def lora_norm(lora: Lora) -> float:
    """Frobenius norm over all layers."""
    return math.sqrt(sum(max(squared_norm(layer), 0.0) for layer in lora.layers.values()))


def describe(lora: Lora) -> dict[str, Any]:
    """The facts of one LoRA as plain values."""
    ranks = Counter(layer.rank for layer in lora.layers.values())
    scales = Counter(round(layer.scale, 6) for layer in lora.layers.values())
    return {
        "name": lora.name,
        "format": lora.dialect,
        "layers": len(lora.layers),
        "components": dict(Counter(name.partition(".")[0] for name in lora.layers)),
        "kinds": dict(Counter(_kind(layer) for layer in lora.layers.values())),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "scales": {f"{scale:g}": count for scale, count in sorted(scales.items())},
        "dtypes": dict(Counter(_dtype(layer) for layer in lora.layers.values())),
        "norm": lora_norm(lora),
        "sha256": lora.sha256,
        "unmerged": lora.unmerged,
        "warnings": list(lora.warnings),
        "metadata": {key: printable(value) for key, value in lora.metadata.items()},
    }


def _kind(layer: Layer) -> str:
    names = {"Hadamard": "loha", "Kronecker": "lokr", "Full": "full"}
    return names.get(type(layer).__name__, layer.layout)


def _dtype(layer: Layer) -> str:
    return str(layer.tensors[0].dtype).removeprefix("torch.")


def printable(value: str) -> str:
    """A metadata value without control characters, and not longer than a few lines."""
    text = "".join(c if c.isprintable() else " " for c in value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(value)} characters)"


def block_of(layer: str) -> str:
    """The part of the model that a layer belongs to: its path up to the first number."""
    found = re.match(r"^(.*?\.\d+)(\.|$)", layer)
    if found:
        return found[1]
    return ".".join(layer.split(".")[:2])


def compare(loras: list[Lora]) -> list[BlockComparison]:
    """Each pair of LoRAs in each block that both have, blocks in natural order.

    Raises:
        IncompatibleLoraError: if two LoRAs disagree about the shape of a layer.
    """
    rows = []
    for i, first in enumerate(loras):
        for second in loras[i + 1 :]:
            rows += _compare_pair(first, second)
    return rows


def _compare_pair(first: Lora, second: Lora) -> list[BlockComparison]:
    sums: dict[str, list[float]] = {}
    for stack in line_up([first, second], [1.0, 1.0]):
        conflict = sign_conflict(stack)
        if conflict is None:
            continue
        a, b = stack.parts
        entries = math.prod(a.matrix_shape)
        total = sums.setdefault(block_of(stack.name), [0.0] * 6)
        for i, value in enumerate(
            (inner(a, b), squared_norm(a), squared_norm(b), conflict * entries, entries, 1)
        ):
            total[i] += value
    return [
        BlockComparison(
            block,
            first.name,
            second.name,
            int(count),
            product / math.sqrt(norm_a * norm_b) if norm_a and norm_b else 0.0,
            conflicts / entries,
        )
        for block, (product, norm_a, norm_b, conflicts, entries, count) in sums.items()
    ]
