"""From shares of drawings to the scores of one set: what a merge keeps of the LoRAs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from merge_ops.demo.plan import Prompt

from .plan import KEPT, LoraSet
from .studio import Drawings, Shares

MEASURES = ("own", "worst", "others", "pairs", "kept")


@dataclass(frozen=True, slots=True)
class Amount:
    """How many drawings are judged. Other subjects and combinations are means over several prompts."""

    own: int = 64
    others: int = 16
    pairs: int = 32
    kept: int = 16


FULL, QUICK = Amount(), Amount(own=32, others=8, pairs=16, kept=8)


def drawings(lora_set: LoraSet, amount: Amount) -> Drawings:
    """Return every prompt of a set and how often it is drawn."""
    wanted = dict.fromkeys(KEPT, amount.kept)
    wanted |= dict.fromkeys(lora_set.own(), amount.own)
    wanted |= dict.fromkeys(lora_set.others(), amount.others)
    pairs = lora_set.pairs()
    few = 2 * amount.pairs if len(pairs) <= 2 else amount.pairs
    return wanted | dict.fromkeys(pairs, few)


@dataclass(frozen=True, slots=True)
class Score:
    """What a merge of one set keeps; None where the set has no such prompts.

    ``own`` and ``others`` are shares of what the LoRAs alone draw right, over all prompts together; ``worst``
    is that of the LoRA that kept least of its own prompt; ``pairs`` and ``kept`` are shares of the drawings.
    """

    own: float
    worst: float
    others: float | None
    pairs: float | None
    kept: float


def score(lora_set: LoraSet, merged: Shares, alone: Mapping[str, list[Shares]]) -> Score:
    """Score one set.

    Args:
        lora_set: the set.
        merged: what the merge draws right.
        alone: what each LoRA alone draws right, by name; twins have two entries.
    """
    reference = {
        prompt: _mean_of(alone, prompt, lora_set) for prompt in (*lora_set.own(), *lora_set.others())
    }
    own = lora_set.own()
    return Score(
        own=_of(own, merged, reference),
        worst=min(_of([prompt], merged, reference) for prompt in own),
        others=_of(lora_set.others(), merged, reference) if lora_set.others() else None,
        pairs=_mean(lora_set.pairs(), merged) if lora_set.pairs() else None,
        kept=_mean(KEPT, merged),
    )


def _of(prompts: list[Prompt], merged: Shares, reference: Shares) -> float:
    whole = sum(reference[prompt] for prompt in prompts)
    return sum(merged[prompt] for prompt in prompts) / whole if whole else 0.0


def _mean(prompts: list[Prompt] | tuple[Prompt, ...], shares: Shares) -> float:
    return sum(shares[prompt] for prompt in prompts) / len(prompts)


def _mean_of(alone: Mapping[str, list[Shares]], prompt: Prompt, lora_set: LoraSet) -> float:
    """The share of a prompt with the LoRA that teaches it; for twins the mean of both."""
    found = [
        shares[prompt] for name in dict.fromkeys(lora_set.names) for shares in alone[name] if prompt in shares
    ]
    return sum(found) / len(found)
