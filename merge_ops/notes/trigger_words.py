"""Trigger words of a LoRA, and the tags of its training images."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .plain_text import clean_line

_MAX_WORDS = 60
_MAX_WORD = 400  # characters: on Civitai some authors give a whole prompt for each character
_MAX_TAGS = 40
_MAX_TAG = 100
_MAX_JSON = 8 << 20
_IN_ALL = 0.9  # share of the images that a tag must cover to count as a trigger
_MAX_TRIGGERS = 3  # where more tags cover all images, they describe what these have in common
_LORA_TAG = re.compile(r"<(?:lora|lyco|lokr|loha):[^<>]*>", re.IGNORECASE)
# what captioning programs write of nearly every image
_COMMON = frozenset(
    "1girl 1boy 1other solo girl boy woman man person no_humans masterpiece best_quality high_quality "
    "absurdres highres photo photo_(medium) realistic simple_background white_background "
    "looking_at_viewer".split()
)


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the training images; ``share`` is that of the images with it, None if unknown."""

    text: str
    count: int
    share: float | None


def split_words(text: str) -> list[str]:
    """Split a text at its commas and lines, but not inside of brackets, without ``<lora:...>``."""
    words, word, depth = list[str](), list[str](), 0
    for sign in _LORA_TAG.sub("", text[:20_000]):
        depth = max(0, depth + (sign in "([{") - (sign in ")]}"))
        if sign == "\n" or (sign in ",，" and not depth):
            words.append("".join(word))
            word, depth = [], 0
        else:
            word.append(sign)
    return tidy_words([*words, "".join(word)])


def tidy_words(given: Any) -> list[str]:
    """Return the texts of a list, each on one line and once."""
    found: dict[str, str] = {}
    for item in given if isinstance(given, Iterable) and not isinstance(given, Mapping | bytes) else ():
        if isinstance(item, str):
            word = clean_line(_LORA_TAG.sub("", item[: 4 * _MAX_WORD]), _MAX_WORD).strip(" ,，;")
            if word:
                found.setdefault(word.casefold(), word)
        if len(found) >= _MAX_WORDS:
            break
    return list(found.values())


def join_words(lists: Iterable[Iterable[str]]) -> str:
    """Join the words of several LoRAs in their order, each once."""
    found: dict[str, str] = {}
    for words in lists:
        for word in words:
            found.setdefault(word.casefold(), word)
    return ", ".join(found.values())


def read_tags(metadata: Mapping[str, str]) -> list[Tag]:
    """Return the most frequent tags that a trainer noted, the most frequent first."""
    frequencies = _object(metadata.get("ss_tag_frequency"))
    if not frequencies:
        frequencies = _of_datasets(metadata, "tag_frequency")
    images = {
        name: entry.get("img_count")
        for name, entry in _object(metadata.get("ss_dataset_dirs")).items()
        if isinstance(entry, dict)
    } or _of_datasets(metadata, "subsets")
    counts, numbers = Counter[str](), list[int]()
    for name, tags in frequencies.items():
        if isinstance(tags, dict):
            numbers.append(_count(images.get(name)))
            for tag, count in tags.items():
                counts[clean_line(tag, _MAX_TAG)] += _count(count)
    counts.pop("", None)
    total = sum(numbers) if all(numbers) else 0  # with a folder of unknown size there are no shares
    return [
        Tag(tag, count, min(1.0, count / total) if total else None)
        for tag, count in counts.most_common(_MAX_TAGS)
        if count
    ]


def triggers_among(tags: list[Tag], metadata: Mapping[str, str]) -> list[str]:
    """Return the tags that stand in nearly all images and say something, if they are few.

    ai-toolkit notes its trigger word as the one tag of the one image of a data set ``1_WORD``.
    """
    noted = _object(metadata.get("ss_tag_frequency"))
    if len(noted) == len(tags) == 1 and f"1_{tags[0].text}" in noted:
        return [tags[0].text]
    in_all = [tag.text for tag in tags if tag.share is not None and tag.share >= _IN_ALL]
    found = [text for text in in_all if text.replace(" ", "_").lower() not in _COMMON]
    return found if len(found) <= _MAX_TRIGGERS else []


def _of_datasets(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """What newer trainers note for each data set: its tags by folder, or the images of each folder."""
    found: dict[str, Any] = {}
    datasets = _parsed(metadata.get("ss_datasets"))
    for dataset in datasets if isinstance(datasets, list) else ():
        held = dataset.get(key) if isinstance(dataset, dict) else None
        if isinstance(held, dict):
            found.update(held)
        for subset in held if isinstance(held, list) else ():
            if isinstance(subset, dict) and isinstance(subset.get("image_dir"), str):
                found[subset["image_dir"]] = subset.get("img_count")
    return found


def _count(value: Any) -> int:
    """A number from 1, or 0 for anything else."""
    return value if type(value) is int and 0 < value < 1 << 40 else 0


def _object(text: str | None) -> dict[str, Any]:
    value = _parsed(text)
    return value if isinstance(value, dict) else {}


def _parsed(text: str | None) -> Any:
    if not text or len(text) > _MAX_JSON:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
