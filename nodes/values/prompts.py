"""The prompts that show what each LoRA does, and those that name several. Needs no ComfyUI."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from ...merge_ops.errors import ParameterError
from ...merge_ops.lora import Lora
from .stack_entries import StackEntry

SEPARATOR = "|"
_PHRASES = ("modelspec.trigger_phrase", "trigger_words", "ss_trigger_words")
_TAGS = "ss_tag_frequency"  # kohya's JSON: dataset -> tag -> number of its images
_ALMOST_ALL = 0.9  # a tag of this share of the images belongs to the subject, not to single images
_MOST_TAGS = 3


def split_prompts(text: str | None) -> tuple[str, ...]:
    """Split a text at ``|`` and at the ends of lines; what is left empty is dropped."""
    parts = (part.strip() for line in (text or "").splitlines() for part in line.split(SEPARATOR))
    return tuple(part for part in parts if part)


def find_trigger_words(lora: Lora) -> str:
    """Find the words that call a LoRA in its metadata, or ``""``."""
    for key in _PHRASES:
        if phrase := lora.metadata.get(key, "").strip():
            return phrase
    try:
        datasets = json.loads(lora.metadata.get(_TAGS, "{}"))
    except json.JSONDecodeError:
        return ""
    counts: Counter[str] = Counter()
    for tags in datasets.values() if isinstance(datasets, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, int | float):
                counts[tag.strip()] += count
    most = max(counts.values(), default=0)
    common = [tag for tag, count in counts.most_common(_MOST_TAGS) if tag and count >= _ALMOST_ALL * most]
    return ", ".join(common)


def list_prompts(entries: Sequence[StackEntry]) -> list[tuple[str, ...]]:
    """List the prompts of each LoRA: those of its row, or else the trigger words in its file.

    Raises:
        ParameterError: if a LoRA has neither; the message names all of them.
    """
    prompts = [entry.prompts or tuple(filter(None, [find_trigger_words(entry.lora)])) for entry in entries]
    lacking = [entry.lora.name for entry, own in zip(entries, prompts, strict=True) if not own]
    if lacking:
        raise ParameterError(
            f"{', '.join(lacking)} {'needs' if len(lacking) == 1 else 'need'} a prompt that shows what the "
            "LoRA does: press Prompts in the list, or write <lora:name:1:prompt=a photo of mia>; the file "
            "names no trigger words"
        )
    return prompts
