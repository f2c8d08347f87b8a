"""What other programs write beside a LoRA file about it.

Every key may be missing or of another type: programs differ, and people edit these files. What cannot be used
is left out; a file that cannot be read at all is named in ``problems``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plain_text import clean_line, clean_text, text_of_html
from .trigger_words import read_tags, split_words, tidy_words, triggers_among

MAX_SIDECAR = 4 << 20  # bytes; Civitai's answer with the prompts of all its pictures has a hundred thousand
_MAX_NOTES = 6000
_MAX_LINE = 200


@dataclass(slots=True)
class Sidecar:
    """What the files beside a LoRA say, those that are trusted most first."""

    words: list[str] = field(default_factory=list)
    words_from: str | None = None  # the name of the file
    bases: list[str] = field(default_factory=list)
    title: str | None = None
    author: str | None = None
    notes: str | None = None  # of the user
    description: str | None = None  # of the author
    strength: float | None = None
    problems: list[str] = field(default_factory=list)

    def take(self, key: str, value: Any) -> None:
        """Keep the first value that there is."""
        if value not in (None, "") and getattr(self, key) is None:
            setattr(self, key, value)


def sidecar_paths(path: Path) -> list[Path]:
    """Return where notes about a LoRA file may lie, those that are trusted most first."""
    names = (
        f"{path.stem}.metadata.json",  # LoRA Manager
        f"{path.stem}.civitai.info",  # Civitai Helper, and others after it
        f"{path.name}.rgthree-info.json",
        f"{path.stem}.json",  # A1111, Forge
    )
    return [path.with_name(name) for name in names]


def read_sidecars(paths: Iterable[Path]) -> Sidecar:
    """Read those of the files that there are."""
    found = Sidecar()
    for path in paths:
        try:
            given = _read_object(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            found.problems.append(path.name)
            continue
        _take_all(found, given, path.name)
    return found


def read_beside(path: Path) -> Sidecar:
    """Read the files beside a LoRA; links that lead out of its folder are not followed."""
    folder = path.parent.resolve()
    return read_sidecars(each for each in sidecar_paths(path) if each.resolve().parent == folder)


def words_of(sidecar: Sidecar, metadata: Mapping[str, str]) -> tuple[list[str], str | None]:
    """Return the trigger words of a LoRA, and where they are from: from people first, then from its tags."""
    if sidecar.words:
        return sidecar.words, sidecar.words_from
    if phrase := split_words(metadata.get("modelspec.trigger_phrase", "")):
        return phrase, "modelspec.trigger_phrase"
    tags = triggers_among(read_tags(metadata), metadata)
    return tidy_words(tags), "ss_tag_frequency" if tags else None


def read_peft_base(path: Path) -> str | None:
    """Return the base model that PEFT's configuration of a folder names."""
    try:
        return clean_line(_text(_read_object(path), "base_model_name_or_path"), _MAX_LINE) or None
    except (OSError, ValueError, RecursionError):
        return None


def _read_object(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(MAX_SIDECAR + 1)
    if len(raw) > MAX_SIDECAR:
        raise ValueError("too large")
    given = json.loads(raw.decode("utf-8-sig"))
    if not isinstance(given, dict):
        raise ValueError("not an object")
    return given


def _take_all(found: Sidecar, given: Mapping[str, Any], name: str) -> None:
    """Take what any of the programs may have written; their keys do not contradict each other."""
    civitai = _mapping(given, "civitai")  # LoRA Manager has Civitai's answer in here, Civitai Helper is it
    model = _mapping(civitai, "model") or _mapping(given, "model")
    if not found.words:
        words = (
            tidy_words(_list(civitai, "trainedWords"))
            or tidy_words(map(_word, _list(given, "trainedWords")))
            or split_words(_text(given, "activation text"))
        )
        found.words, found.words_from = words, name if words else None
    bases = (_text(given, "base_model"), _text(civitai, "baseModel"), _text(given, "baseModel"))
    found.bases += [clean_line(base, _MAX_LINE) for base in (*bases, _text(given, "sd version")) if base]
    titles = (_text(given, "model_name"), _text(model, "name"))
    found.take("title", next((clean_line(title, _MAX_LINE) for title in titles if title), None))
    creators = (_mapping(civitai, "creator"), _mapping(given, "creator"))
    found.take("author", next((clean_line(_text(c, "username"), _MAX_LINE) for c in creators if c), None))
    notes = _text(given, "notes") or _text(given, "userNote")
    found.take("notes", clean_text(notes, _MAX_NOTES))
    about = (
        _text(given, "modelDescription"), _text(model, "description"), _text(civitai, "description"),
        _text(given, "description"),
    )  # fmt: skip
    found.take(
        "description", next((text for html in about if (text := text_of_html(html, _MAX_NOTES))), None)
    )
    found.take("strength", _strength(given))


def _word(item: Any) -> Any:
    """A word of Civitai, or of rgthree's file, which holds words from the training tags as well."""
    if isinstance(item, dict):
        return item.get("word") if item.get("civitai") or item.get("user") else None
    return item


def _strength(given: Mapping[str, Any]) -> float | None:
    tips = given.get("usage_tips")
    if isinstance(tips, str) and len(tips) < 10_000:
        try:
            tips = json.loads(tips)
        except (ValueError, RecursionError):
            tips = None
    values = [given.get("preferred weight"), tips.get("strength") if isinstance(tips, dict) else None]
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value) if abs(value) <= 100 else math.nan
            if math.isfinite(number) and number:  # A1111 writes 0 for none
                return number
    return None


def _mapping(given: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = given.get(key)
    return value if isinstance(value, dict) else {}


def _list(given: Mapping[str, Any], key: str) -> list[Any]:
    value = given.get(key)
    return value if isinstance(value, list) else []


def _text(given: Mapping[str, Any], key: str) -> str:
    value = given.get(key)
    return value if isinstance(value, str) else ""
