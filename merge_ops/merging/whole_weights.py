"""Weights that adapters hold whole, or rows of them: which of them agree, and whose are kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..errors import IncompatibleLoraError, ParameterError, did_you_mean
from ..lora import BaseWeights, Lora, WholeWeight


def agreed(loras: list[Lora], keep: str | None, base: BaseWeights | None = None) -> dict[str, WholeWeight]:
    """The weights that take the place of the base model's, where the LoRAs agree on them or one is kept.

    ``keep`` names the LoRA whose weights win. Rows of tokens are united, and of two embeddings the longer one
    is taken if it begins with the other. They are not merged as differences, even beside a base model: what
    it holds for a new token is untrained, so a difference to it says nothing.

    Raises:
        ParameterError: if no LoRA of that name has such weights.
        IncompatibleLoraError: if LoRAs differ, or one adapts what another replaces, and none is named.
    """
    kept = [lora for lora in loras if lora.name == keep and lora.whole_weights]
    if keep is not None and not kept:
        names = [lora.name for lora in loras if lora.whole_weights]
        raise ParameterError(
            f"no LoRA called {keep!r} holds whole weights{did_you_mean(keep, names) if names else ''}"
        )
    found: dict[str, WholeWeight] = {}
    holders: dict[str, list[Lora]] = {}
    for lora in (*kept, *(lora for lora in loras if lora not in kept)):
        for name, weight in lora.whole_weights.items():
            for other in holders.setdefault(name, []):
                clash = _clash(name, other.whole_weights[name], weight, base)
                if clash and other not in kept:
                    raise IncompatibleLoraError(_disagreement(name, weight, other, lora, clash))
            found[name] = _united(found[name], weight) if name in found else weight
            holders[name].append(lora)
    for name, owners in holders.items():
        stranger = next(
            (lora for lora in loras if name in lora.layers and name not in lora.whole_weights), None
        )
        if stranger is not None and not kept:
            raise IncompatibleLoraError(
                f"{owners[0].name} replaces {name} ({found[name].why}), and {stranger.name} was trained on "
                f"the base model's; say whose to keep with keep={owners[0].name!r}, or merge without one "
                "of them"
            )
    return found


def _disagreement(name: str, weight: WholeWeight, first: Lora, second: Lora, clash: str) -> str:
    return (
        f"{first.name} and {second.name} hold different weights for {name} ({weight.why}), which cannot be "
        f"merged: {clash}; say whose to keep with keep={first.name!r}"
    )


def _clash(name: str, a: WholeWeight, b: WholeWeight, base: BaseWeights | None) -> str:
    """In which way two weights differ, in words; empty if both can be had."""
    if a.value.ndim != b.value.ndim or a.value.shape[1:] != b.value.shape[1:]:
        return f"their shapes are {tuple(a.value.shape)} and {tuple(b.value.shape)}"
    if not a.is_vocabulary or not b.is_vocabulary:
        if a.value.shape != b.value.shape:
            return f"their shapes are {tuple(a.value.shape)} and {tuple(b.value.shape)}"
        return "" if torch.equal(_numbers(a.value), _numbers(b.value)) else "their values differ"
    differing = _differing_tokens(a, b)
    if not differing:
        return ""
    if a.rows or b.rows:
        return f"both train the token at index {differing[0]}, and they differ"
    weight = base(name) if base is not None else None
    start = differing[0] if weight is None else weight.shape[0]
    if 0 < start <= differing[0]:
        return f"both add tokens from index {start} on, and they differ"
    length = min(a.value.shape[0], b.value.shape[0])
    return f"they differ in {len(differing)} of {length} tokens, from index {differing[0]} on"


def _differing_tokens(a: WholeWeight, b: WholeWeight) -> list[int]:
    """Indices of the tokens that both hold, with different values."""
    places = {index: place for place, index in enumerate(_tokens(b))}
    shared = [(place, index) for place, index in enumerate(_tokens(a)) if index in places]
    if not shared:
        return []
    mine = _numbers(a.value)[[place for place, _ in shared]]
    theirs = _numbers(b.value)[[places[index] for _, index in shared]]
    unequal = (mine != theirs).any(dim=1).tolist()
    return sorted(index for (_, index), differs in zip(shared, unequal, strict=True) if differs)


def _tokens(weight: WholeWeight) -> range | tuple[int, ...]:
    return weight.rows or range(weight.value.shape[0])


def _united(first: WholeWeight, second: WholeWeight) -> WholeWeight:
    """The rows of both where they are rows; where both hold a row it is that of the first."""
    if not first.is_vocabulary or not second.is_vocabulary:
        return first
    if first.rows and second.rows:
        held = {index: second.value[place] for place, index in enumerate(second.rows)}
        held |= {index: first.value[place] for place, index in enumerate(first.rows)}
        rows = tuple(sorted(held))
        return replace(first, value=torch.stack([held[index].to(first.value) for index in rows]), rows=rows)
    if first.rows:
        value = second.value.clone()
        inside = [place for place, index in enumerate(first.rows) if index < value.shape[0]]
        value[[first.rows[place] for place in inside]] = first.value[inside].to(value)
        return replace(second, value=value)
    longer = second.value.shape[0] > first.value.shape[0] and not second.rows
    return second if longer and not _differing_tokens(first, second) else first


def _numbers(value: Tensor) -> Tensor:
    return value.to("cpu", torch.float32)
