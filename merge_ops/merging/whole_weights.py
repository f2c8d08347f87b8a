"""Weights that adapters hold whole, or in part by rows: whether they agree, and which are kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..adapters.configuration import CONFIGURATION, same_settings
from ..errors import IncompatibleLoraError, ParameterError, did_you_mean
from ..lora import BaseWeights, Lora, WholeWeight


def agree_on_whole_weights(
    loras: list[Lora], keep: str | None, base: BaseWeights | None = None
) -> dict[str, WholeWeight]:
    """Return the weights that replace those of the base model, by name, if the LoRAs agree on them.

    ``keep`` names the LoRA whose weights win where they do not agree. Rows of tokens are united, and of two
    embeddings the longer one is taken if it begins with the other. Whole weights are not merged as
    differences, even if the base model is given: its rows for new tokens are untrained, so a difference from
    them means nothing.

    Raises:
        ParameterError: if no LoRA of that name has whole weights.
        IncompatibleLoraError: if LoRAs differ, or one adapts what another replaces, and ``keep`` is None.
    """
    kept = [lora for lora in loras if lora.name == keep and lora.whole_weights]
    if keep is not None and not kept:
        names = [lora.name for lora in loras if lora.whole_weights]
        raise ParameterError(
            f"no LoRA called {keep!r} has whole weights{did_you_mean(keep, names) if names else ''}"
        )
    agreed: dict[str, WholeWeight] = {}
    holders: dict[str, list[Lora]] = {}
    for lora in (*kept, *(lora for lora in loras if lora not in kept)):
        for name, weight in lora.whole_weights.items():
            for other in holders.setdefault(name, []):
                clash = _clash(name, other.whole_weights[name], weight, base)
                if clash and other not in kept:
                    raise IncompatibleLoraError(_disagreement(name, weight, other, lora, clash))
            agreed[name] = _united(agreed[name], weight) if name in agreed else weight
            holders[name].append(lora)
    for name, owners in holders.items():
        stranger = next(
            (lora for lora in loras if name in lora.layers and name not in lora.whole_weights), None
        )
        if stranger is not None and not kept:
            raise IncompatibleLoraError(
                f"{owners[0].name} replaces {name} ({agreed[name].why}), and {stranger.name} was trained on "
                f"the base model's; say whose to keep with keep={owners[0].name!r}, or merge without one "
                "of them"
            )
    return agreed


def _disagreement(name: str, weight: WholeWeight, first: Lora, second: Lora, clash: str) -> str:
    return (
        f"{first.name} and {second.name} hold different weights for {name} ({weight.why}), which cannot be "
        f"merged: {clash}; say whose to keep with keep={first.name!r}"
    )


def _clash(name: str, a: WholeWeight, b: WholeWeight, base: BaseWeights | None) -> str:
    """How two weights contradict each other, in words; empty if both can be kept."""
    if a.why == b.why == CONFIGURATION:
        return "" if same_settings(a.value, b.value) else "their settings differ"
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
    """Indices of the tokens that both have, with different values."""
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
    """Both weights in one, with the rows of both; a row that both have is taken from the first."""
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
