"""A merged layer as one low-rank adapter: the factors of all LoRAs side by side, which is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ....merge_ops.lora import LowRank
from ....merge_ops.merging.merged import Merged
from ....merge_ops.merging.merged_layer import MergedLayer
from ..merges.summary import count_loras
from ..target import Target
from .patch import MergedAdapter, add_patches, make_lora_adapter
from .whole_weights import add_whole_weights


class OnePatch(NamedTuple):
    """The part of a merged layer that has factors, as one adapter, and the rest; their sum is the layer."""

    low_rank: LowRank | None
    rest: list[MergedLayer]


def as_one_patch(layer: MergedLayer) -> OnePatch:
    """Put what has factors into one adapter: the LoRAs of a sum, a low-rank merge, and what is added to it.

    The rest are other kinds of adapters in a sum, and merges of full rank.
    """
    parts: list[LowRank] = []
    rest: list[MergedLayer] = []
    for each in (layer.without_added, layer.added):
        if each is None:
            continue
        found, others = _take_apart(each)
        parts += found
        rest += others
    return OnePatch(_as_layer(concatenated(parts), layer) if parts else None, rest)


def concatenated(parts: Sequence[LowRank]) -> LowRank:
    """Return the sum of low-rank layers: the ups side by side with the scales in them, the downs stacked.

    The largest scale stays apart, so that the factors are of the size that they were trained with, which a
    model in float16 needs. A layer alone is returned as it is.
    """
    first, *others = parts
    if not others:
        return first
    largest = max(abs(part.scale) for part in parts) or 1.0
    up = torch.cat([part.up.to(torch.float32) * (part.scale / largest) for part in parts], dim=1)
    is_alike = len({part.down.dtype for part in parts}) == 1
    downs = [part.down if is_alike else part.down.to(torch.float32) for part in parts]
    return replace(first, up=up, down=torch.cat(downs), scale=largest)


def add_one_patch(patcher: Any, merged: Merged, targets: Mapping[str, Target], strength: float) -> str:
    """Add a merge to a (cloned) ModelPatcher or CLIP with one patch for each weight where that is exact.

    Returns what was done. The rest of a layer, if there is one, is a second patch.
    """
    add_whole_weights(patcher, merged, targets, strength)
    keys: set[str] = set()  # one for all, by which Merge Loaded LoRAs knows them as one LoRA
    pairs: dict[Target, Any] = {}
    others: dict[Target, Any] = {}
    further: dict[Target, Any] = {}
    for name, target in targets.items():
        if name not in merged.layers:
            continue
        pair, rest = as_one_patch(merged.layer(name))
        if pair is not None:
            pairs[target] = make_lora_adapter(pair, keys)
        for held, layer in zip((others, further), rest, strict=False):
            held[target] = MergedAdapter.of(layer, whole=target.function is not None)
    for patches in (pairs, others, further):
        add_patches(patcher, patches, strength)
    several = len(further.keys() | (pairs.keys() & others.keys()))
    said = (
        f"{count_loras(len(merged.loras))} in one patch for each of "
        f"{len(pairs.keys() | others.keys()) - several} weights"
    )
    if several:
        said += f"; {several} have another one, for what is no plain LoRA"
    return said


def _take_apart(layer: MergedLayer) -> tuple[list[LowRank], list[MergedLayer]]:
    """The low-rank parts of a layer with nothing added, each with its weight in the scale; and the rest."""
    aligned = layer.aligned
    if layer.fixed is not None:
        return [layer.fixed], []
    if layer.settings.method.linear:
        parts, weights = aligned.low_rank()
        scaled = [
            part.scaled(weight * layer.settings.scale) for part, weight in zip(parts, weights, strict=True)
        ]
        others = [i for i, part in enumerate(aligned.parts) if not isinstance(part, LowRank)]
        if not others:
            return scaled, []
        only = replace(
            aligned,
            **{
                name: tuple(getattr(aligned, name)[i] for i in others)
                for name in ("parts", "weights", "identities", "indices")
            },
        )
        return scaled, [replace(layer, aligned=only)]
    pair = layer.factors()
    if pair is None:
        return [], [layer]
    return [LowRank(*pair)], []


def _as_layer(pair: LowRank, layer: MergedLayer) -> LowRank:
    """The factors as an adapter of this weight; those of a plain product do not know its shape."""
    template = layer.template
    return replace(
        pair, layout=template.layout, kernel=template.kernel, key=template.key, padded_to=layer.padded_to
    )
