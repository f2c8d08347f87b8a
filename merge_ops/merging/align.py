"""Aligning LoRAs layer by layer, in an order that does not depend on their places in the list."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

from ..errors import IncompatibleLoraError, ParameterError
from ..lora import Layer, Lora, LowRank
from ..methods.sparsify import MaskGenerator, mask_key
from .fingerprint import fingerprint
from .request import Request


@dataclass(frozen=True, slots=True, eq=False)
class AlignedLayer:
    """One layer of every LoRA that takes part in it. Entry ``i`` of each tuple belongs to the same LoRA."""

    name: str
    parts: tuple[Layer, ...]
    weights: tuple[float, ...]  # with the block strength multiplied in
    identities: tuple[str, ...]  # what random masks are drawn by
    indices: tuple[int, ...] = ()  # the place of each LoRA in the list, from 0
    count: int = 0  # how many LoRAs the list has

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each part."""
        return tuple(part.rank for part in self.parts)

    @property
    def is_low_rank(self) -> bool:
        """True if every part is given as up and down factors."""
        return all(isinstance(part, LowRank) for part in self.parts)

    def low_rank(self) -> tuple[list[LowRank], list[float]]:
        """Return the parts that have up and down factors, and their weights."""
        pairs = zip(self.parts, self.weights, strict=True)
        chosen = [(part, weight) for part, weight in pairs if isinstance(part, LowRank)]
        return [part for part, _ in chosen], [weight for _, weight in chosen]

    def generator(self, seed: int, factor: str, first: int = 0) -> MaskGenerator:
        """Return the source of random masks for ``delta``, ``up`` or ``down``, from entry ``first`` on."""
        return MaskGenerator([mask_key(seed, self.name, who, factor) for who in self.identities], first)


def align(loras: list[Lora], request: Request) -> list[AlignedLayer]:
    """Return one aligned layer per layer name, in natural order of the names.

    Within a layer the LoRAs have an order of their own, which depends on what they are and not on where they
    stand in the list, so a permuted list gives the same bits; a method that declares an order of the LoRAs
    gets them in that of the list. A LoRA whose block strength is 0 in a layer
    takes no part in it, and a layer that no LoRA takes part in is left out.

    Raises:
        IncompatibleLoraError: if LoRAs disagree about the shape of a layer.
        ParameterError: if every block strength is 0, so that nothing would be merged.
    """
    method = request.settings.method
    order = list(range(len(loras))) if "order" in method.breaks else _own_order(loras, request)
    needs_identity = "generator" in method.supplied
    identities = _identities(loras, order) if needs_identity else dict.fromkeys(order, "")
    aligned = []
    for name in sorted({name for lora in loras for name in lora.layers}, key=_natural):
        holders = [i for i in order if name in loras[i].layers]
        _check_shapes(name, [loras[i] for i in holders])
        strengths = {i: request.block_strength(i, name) for i in holders}
        chosen = [i for i in holders if strengths[i]]
        if not chosen:
            continue
        aligned.append(
            AlignedLayer(
                name,
                tuple(loras[i].layers[name] for i in chosen),
                tuple(request.weight(i, name) * strengths[i] for i in chosen),
                tuple(identities[i] for i in chosen),
                tuple(chosen),
                len(loras),
            )
        )
    if not aligned and any(lora.layers for lora in loras):
        raise ParameterError("the block strengths are 0 in every layer of every LoRA, so nothing is merged")
    return aligned


def _own_order(loras: list[Lora], request: Request) -> list[int]:
    """By name, sizes of the weights, block strengths, weights, and content where these are the same.

    Many files share a name. The sizes come before the signs, so that the negative of a merge is summed in the
    same order.
    """
    weights = list(zip(request.weights, request.text_weights, strict=True))
    texts = ["" if each is None else str(each) for each in request.blocks]
    counts = Counter(zip((lora.name for lora in loras), weights, texts, strict=True))

    def place(i: int) -> tuple[str, tuple[float, ...], str, tuple[float, ...], str]:
        lora, weight = loras[i], weights[i]
        is_unique = counts[lora.name, weight, texts[i]] == 1
        content = "" if is_unique else (lora.sha256 or str(fingerprint(lora)))
        return lora.name, tuple(map(abs, weight)), texts[i], weight, content

    return sorted(range(len(loras)), key=place)


def _identities(loras: list[Lora], order: list[int]) -> dict[int, str]:
    """The fingerprint of each LoRA, numbered where it occurs more than once."""
    seen: Counter[int] = Counter()
    identities = {}
    for i in order:
        mark = fingerprint(loras[i])
        identities[i] = f"{mark}.{seen[mark]}"
        seen[mark] += 1
    return identities


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
    """A sort key by which ``block.2`` comes before ``block.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
