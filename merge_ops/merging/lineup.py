"""Lining LoRAs up layer by layer, in an order that does not depend on their places in the stack."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from ..blocks import BlockStrengths
from ..errors import IncompatibleLoraError
from ..lora import Layer, Lora
from ..names.architectures import is_text
from .fingerprint import fingerprint
from .spaces import AlignedLayer


def line_up(
    loras: list[Lora],
    weights: list[float],
    text_weights: list[float] | None = None,
    needs_identity: bool = False,
    blocks: Sequence[BlockStrengths | None] | None = None,
) -> list[AlignedLayer]:
    """One stack a layer, in natural order of the names; within it the LoRAs in an order of their own.

    That order depends on the LoRAs and not on their places, so a permuted stack gives the same bits. A LoRA
    whose block strength is 0 in a layer has no part in it, and a layer without any part has no stack.
    """
    text_weights = weights if text_weights is None else text_weights
    blocks = blocks or [None] * len(loras)
    order = _own_order(loras, list(zip(weights, text_weights, strict=True)), blocks)
    identities = _identities(loras, order) if needs_identity else dict.fromkeys(order, "")
    names = sorted({name for lora in loras for name in lora.layers}, key=_natural)
    stacks = []
    for name in names:
        factors = {i: factor_of(blocks[i], name) for i in order if name in loras[i].layers}
        used = text_weights if is_text(name) else weights
        _check_shapes(name, [loras[i] for i in factors])
        having = [i for i, factor in factors.items() if factor]
        if not having:
            continue
        stacks.append(
            AlignedLayer(
                name,
                tuple(loras[i].layers[name] for i in having),
                tuple(used[i] * factors[i] for i in having),
                tuple(identities[i] for i in having),
            )
        )
    return stacks


def factor_of(blocks: BlockStrengths | None, layer: str) -> float:
    """The block strength of a LoRA in a layer; 1 without any."""
    return 1.0 if blocks is None else blocks.factor(layer)


def _own_order(
    loras: list[Lora], weights: list[tuple[float, float]], blocks: Sequence[BlockStrengths | None]
) -> list[int]:
    """By name, sizes of the weights, block strengths, weights, and content where these are the same.

    Many files share a name. The sizes come before the signs, so that the negative of a merge is summed in the
    same order.
    """
    texts = ["" if each is None else str(each) for each in blocks]
    seen = Counter(zip((lora.name for lora in loras), weights, texts, strict=True))

    def place(i: int) -> tuple[str, tuple[float, ...], str, tuple[float, ...], str]:
        lora, weight = loras[i], weights[i]
        alike = seen[lora.name, weight, texts[i]] > 1
        content = (lora.sha256 or str(fingerprint(lora))) if alike else ""
        return lora.name, tuple(map(abs, weight)), texts[i], weight, content

    return sorted(range(len(loras)), key=place)


def _identities(loras: list[Lora], order: list[int]) -> dict[int, str]:
    """The fingerprint of each LoRA, numbered where it occurs more than once."""
    seen: Counter[int] = Counter()
    found = {}
    for i in order:
        mark = fingerprint(loras[i])
        found[i] = f"{mark}.{seen[mark]}"
        seen[mark] += 1
    return found


def _check_shapes(name: str, loras: list[Lora]) -> None:
    first = loras[0]
    for other in loras[1:]:
        a, b = first.layers[name], other.layers[name]
        if a.matrix_shape != b.matrix_shape or _is_embedding(a) != _is_embedding(b) or not _same_kernel(a, b):
            raise IncompatibleLoraError(
                f"{name} has the shape {a.weight_shape} in {first.name} and {b.weight_shape} in "
                f"{other.name}; they were trained on different base models and cannot be merged"
            )


def _is_embedding(layer: Layer) -> bool:
    return layer.layout == "embedding"


def _same_kernel(a: Layer, b: Layer) -> bool:
    """A 1 x 1 convolution and a linear layer are the same matrix; some kinds do not know their kernel."""
    if not (a.knows_its_kernel and b.knows_its_kernel):
        return True
    return a.kernel == b.kernel or math.prod(a.kernel) == math.prod(b.kernel) == 1


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
