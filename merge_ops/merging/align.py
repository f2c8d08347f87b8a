"""Aligning LoRAs layer by layer, in an order that does not depend on their places in the list."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import IncompatibleLoraError, ParameterError
from ..lora import Layer, Lora, LowRank
from ..methods.masks import MaskGenerator, mask_key
from ..steady import total
from .fingerprint import nearest, sketch
from .request import Request
from .svd import product_inner


@dataclass(frozen=True, slots=True, eq=False)
class AlignedLayer:
    """One layer of every LoRA that takes part in it. Entry ``i`` of each tuple belongs to the same LoRA."""

    name: str
    parts: tuple[Layer, ...]
    weights: tuple[float, ...]  # with the block strength multiplied in
    identities: tuple[str, ...]  # what random masks are drawn by
    indices: tuple[int, ...] = ()  # the place of each LoRA in the list, from 0
    count: int = 0  # how many LoRAs the list has
    added: AlignedLayer | None = None  # the LoRAs that are added after the merge of these
    is_added: bool = False  # all its LoRAs are such: they are added, whatever the method

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each part."""
        return tuple(part.rank for part in self.parts)

    @property
    def all_ranks(self) -> tuple[int, ...]:
        """The rank of each part, and of those that are added."""
        return self.ranks + (() if self.added is None else self.added.ranks)

    @property
    def is_low_rank(self) -> bool:
        """True if every part is given as up and down factors."""
        return all(isinstance(part, LowRank) for part in self.parts)

    def low_rank(self) -> tuple[list[LowRank], list[float]]:
        """Return the parts that have up and down factors, and their weights."""
        pairs = zip(self.parts, self.weights, strict=True)
        chosen = [(part, weight) for part, weight in pairs if isinstance(part, LowRank)]
        return [part for part, _ in chosen], [weight for _, weight in chosen]


def masks_of(layers: Sequence[AlignedLayer], seed: int, factor: str) -> MaskGenerator:
    """Return the source of random masks for the ``delta``, ``up`` or ``down`` of layers of as many LoRAs."""
    owners = zip(*(layer.identities for layer in layers), strict=True)
    names = [layer.name for layer in layers]
    return MaskGenerator(
        [mask_key(seed, name, who, factor) for lora in owners for name, who in zip(names, lora, strict=True)]
    )


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
    marks = {i: _mark(loras[i]) for i in order} if "generator" in method.supplied else {}
    aligned = []
    for name in sorted({name for lora in loras for name in lora.layers}, key=_natural):
        holders = [i for i in order if name in loras[i].layers]
        _check_shapes(name, [loras[i] for i in holders])
        strengths = {i: request.block_strength(i, name) for i in holders}
        chosen = [i for i in holders if strengths[i]]
        if not chosen:
            continue
        weights = {i: request.weight(i, name) * strengths[i] for i in chosen}
        merged = {i: weight for i, weight in weights.items() if not request.is_apart(i)}
        apart = {i: weight for i, weight in weights.items() if request.is_apart(i)}
        added = _aligned(name, loras, apart, {}) if apart else None
        if not merged and added is not None:
            aligned.append(replace(added, is_added=True))
            continue
        identities = _identities(name, loras, marks, merged) if marks else {}
        aligned.append(replace(_aligned(name, loras, merged, identities), added=added))
    if not aligned and any(lora.layers for lora in loras):
        raise ParameterError("the block strengths are 0 in every layer of every LoRA, so nothing is merged")
    return aligned


def _aligned(
    name: str, loras: list[Lora], weights: dict[int, float], identities: dict[int, str]
) -> AlignedLayer:
    return AlignedLayer(
        name,
        tuple(loras[i].layers[name] for i in weights),
        tuple(weights.values()),
        tuple(identities.get(i, "") for i in weights),
        tuple(weights),
        len(loras),
    )


def _own_order(loras: list[Lora], request: Request) -> list[int]:
    """By name, sizes of the weights, block strengths, content where these are the same, and weights.

    Many files share a name. The sizes come before the signs, so that the negative of a merge is summed in the
    same order.
    """
    weights = list(zip(request.weights, request.text_weights, strict=True))
    texts = ["" if each is None else str(each) for each in request.blocks]
    alike = [
        (lora.name, tuple(map(abs, weight)), text)
        for lora, weight, text in zip(loras, weights, texts, strict=True)
    ]
    counts = Counter(alike)

    def place(i: int) -> tuple[object, ...]:
        lora, is_unique = loras[i], counts[alike[i]] == 1
        components = () if is_unique or lora.sha256 else tuple(sketch(lora))
        return *alike[i], lora.sha256 or "", components, weights[i]

    return sorted(range(len(loras)), key=place)


@dataclass(frozen=True, slots=True)
class _Marked:
    """What random masks are drawn by: a LoRA's fingerprint, and on which side of its direction it lies."""

    mark: int
    side: int
    components: tuple[float, ...]


def _mark(lora: Lora) -> _Marked:
    components = sketch(lora)
    mark = nearest(components)
    return _Marked(mark, -1 if components[mark] < 0 else 1, tuple(components))


def _identities(
    name: str, loras: list[Lora], marks: dict[int, _Marked], weights: dict[int, float]
) -> dict[int, str]:
    """What the masks of one layer are drawn by: a fingerprint for each LoRA, numbered where several share it.

    Those that share one are numbered by what they add to the layer, the largest first: that changes neither
    with their names nor with their places, and where two add about the same, it matters little which is
    first. LoRAs that pull to opposite sides are numbered apart: a LoRA from which one almost alike is
    subtracted has the same masks as that one, and what is left is their difference.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, weight in weights.items():
        groups.setdefault((marks[i].mark, (weight < 0) is (marks[i].side < 0)), []).append(i)
    identities: dict[int, str] = {}
    for (mark, _), members in groups.items():
        if len(members) > 1:
            sizes = {i: abs(weights[i]) * _norm(loras[i].layers[name]) for i in members}
            members.sort(key=lambda i: (-sizes[i], marks[i].components))
        identities |= {i: f"{mark}.{number}" for number, i in enumerate(members)}
    return identities


def _norm(layer: Layer) -> float:
    """The norm of a delta, from its factors where it has two."""
    if isinstance(layer, LowRank):
        pair = layer.up, layer.down
        return abs(layer.scale) * math.sqrt(max(product_inner(pair, pair), 0.0))
    return math.sqrt(total(layer.matrix().square()))


def _check_shapes(name: str, loras: list[Lora]) -> None:
    first = loras[0]
    for other in loras[1:]:
        a, b = first.layers[name], other.layers[name]
        if a.matrix_shape != b.matrix_shape or _is_embedding(a) != _is_embedding(b) or not _same_kernel(a, b):
            raise IncompatibleLoraError(
                f"{name} has the shape {a.weight_shape} in {first.name} and {b.weight_shape} in "
                f"{other.name}; they were trained on different base models and cannot be merged; with the "
                "model at hand (base=), only what does not fit it is left out"
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
