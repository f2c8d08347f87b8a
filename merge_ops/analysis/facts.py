"""Facts about a LoRA as plain values, and norms computed from the factors alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from ..blocks.names import facts_of
from ..lora import BaseDependent, Layer, Lora, LowRank, WholeWeight
from ..merging.svd import product_inner
from ..names.parts import is_text

_SHOWN = 200  # characters of a metadata value


def squared_norm(layer: Layer) -> float:
    """Return the squared Frobenius norm of a layer's delta."""
    return inner(layer, layer)


def inner(a: Layer, b: Layer) -> float:
    """Return the Frobenius inner product of two deltas of one layer; low-rank deltas are not formed."""
    if not (isinstance(a, LowRank) and isinstance(b, LowRank)):
        return float((a.matrix().to(torch.float64) * b.matrix()).sum())
    return a.scale * b.scale * product_inner((a.up, a.down), (b.up, b.down))


def lora_norm(lora: Lora) -> float:
    """Return the Frobenius norm over all layers."""
    return math.sqrt(sum(max(squared_norm(layer), 0.0) for layer in lora.layers.values()))


def describe(lora: Lora, norm: float | None = None) -> dict[str, Any]:
    """Return the facts about a LoRA as plain values; ``norm`` is its norm if already known.

    Ranks, scales and the norm cover the layers whose delta does not depend on the base model.
    """
    names = (*lora.layers, *lora.base_dependent)
    kinds = Counter(layer.kind for layer in lora.layers.values())
    kinds.update(adapter.kind for adapter in lora.base_dependent.values())
    held: list[Layer | BaseDependent] = [*lora.layers.values(), *lora.base_dependent.values()]
    dtypes = Counter(map(_dtype, held))
    ranks = Counter(layer.rank for layer in lora.layers.values())
    scales = Counter(round(layer.scale, 6) for layer in lora.layers.values())
    return {
        "name": lora.name,
        "format": lora.dialect,
        "layers": len(names),
        "components": dict(Counter(name.partition(".")[0] for name in names)),
        "kinds": dict(kinds),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "scales": {f"{scale:g}": count for scale, count in sorted(scales.items())},
        "dtypes": dict(dtypes),
        "norm": lora_norm(lora) if norm is None else norm,
        "streams": streams(lora),
        "sha256": lora.sha256,
        "whole": {name: _whole(weight) for name, weight in lora.whole_weights.items()},
        "unmerged": lora.unmerged,
        "warnings": list(lora.warnings),
        "metadata": {key: printable(value) for key, value in lora.metadata.items()},
    }


def streams(lora: Lora) -> dict[str, float]:
    """Return the share of the squared norm in the layers of each stream; empty for a LoRA that has one.

    >>> from merge_ops.analysis.facts import streams
    >>> streams(merge_ops.load("ink.safetensors"))  # an image model
    {}
    """
    audio = {name for name in lora.layers if "audio" in facts_of(name)}
    if not audio:
        return {}
    found = {"audio": 0.0, "video": 0.0}
    for name, layer in lora.layers.items():
        if not is_text(name):
            found["audio" if name in audio else "video"] += max(squared_norm(layer), 0.0)
    total = sum(found.values())
    return {stream: square / total for stream, square in found.items()} if total else {}


def _whole(weight: WholeWeight) -> str:
    """Describe a weight that replaces one of the base model."""
    tokens = f", {len(weight.rows)} tokens" if weight.rows else ""
    return f"{weight.why}, {' x '.join(map(str, weight.value.shape))}{tokens}"


def _dtype(layer: Layer | BaseDependent) -> str:
    return str(layer.tensors[0].dtype).removeprefix("torch.")


def printable(value: str) -> str:
    """Return a metadata value without control characters, cut to a few lines."""
    text = "".join(c if c.isprintable() else " " for c in value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(value)} characters)"
