"""What single entries of a file's metadata say about alpha and rank, however a trainer spells them.

PEFT's trainers write ``lora_alpha`` and ``r``, others ``alpha`` and ``rank``; alone or behind the part of
the pipeline (``transformer.lora_alpha``), as text or as JSON inside one value. Kohya's ``ss_network_alpha``
is not among them: every reader of such files takes it for a note about the training, and so does this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import LoraFormatError
from ..names.spelling import DOTTED_COMPONENTS, KOHYA_COMPONENTS

DIFFUSERS_METADATA = "lora_adapter_metadata"
ALPHAS = ("lora_alpha", "network_alpha", "alpha")
RANKS = ("r", "rank", "lora_rank", "lora_r", "lora_dim", "network_rank", "network_dim")
_PATTERNS = ("alpha_pattern", "rank_pattern")
_ROOTS = ("use_rslora", "rslora", "rs_lora")
_NAMES = frozenset((*ALPHAS, *RANKS, *_PATTERNS, *_ROOTS))
_CLEAR = frozenset(("lora_alpha", *_PATTERNS, "use_rslora"))  # means PEFT's setting behind any prefix
COMPONENTS = frozenset((*DOTTED_COMPONENTS, "transformer_2", "text_encoder_4", "dit", "denoiser", "model"))
# what may stand before a name, or hold an object, without being a part of the pipeline
_WHOLE = frozenset(
    ("", "adapter", "adapter_config", "adapter_metadata", "config", "default", "lora", "lora_config",
     "lora_metadata", "metadata", "network", "network_alphas", "network_config", "peft", "peft_config")
)  # fmt: skip
_NOT_READ = frozenset((DIFFUSERS_METADATA, "lora_alloy"))
MAX_CONFIG = 2 << 20  # characters; real ones have a few thousand
_MAX_DEPTH = 4


class Statement(NamedTuple):
    """``part`` is a part of the pipeline, the path of one module, or empty for the whole file."""

    part: str
    name: str
    value: Any
    key: str  # of the metadata, for messages


def statements(metadata: dict[str, str]) -> Iterator[Statement]:
    """Yield what the metadata say about alphas and ranks, apart from diffusers' own entry."""
    for key, text in metadata.items():
        if key in _NOT_READ or key.startswith(("ss_", "sshs_", "modelspec.")):
            continue
        part, name = _split(key)
        if name in _NAMES:
            value = _object(text, key) if name in _PATTERNS else text
            yield Statement(part, name, value, key)
        elif part or name in COMPONENTS or name in _WHOLE or '"lora_alpha"' in text:
            inner = _object(text, key)
            if isinstance(inner, dict):
                yield from _inside(inner, name if name in COMPONENTS else part, key, 0)


def states_scale(key: str, value: str) -> bool:
    """Return True for metadata that describe how the factors of their file are scaled or laid out."""
    head = key.rpartition(".")[0]
    return head in COMPONENTS or next(statements({key: value}), None) is not None


def number(value: Any) -> float | None:
    """Return a number, or one written as text; None for anything else."""
    if isinstance(value, str):
        try:
            return float(value.strip().strip('"'))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def is_true(value: Any) -> bool:
    """Return whether a setting is on, as JSON or as text."""
    return value is True or str(value).strip().lower() in ("true", "1", "yes")


def is_said(value: Any) -> bool:
    """Return False for what trainers write where there is nothing to say."""
    return value is not None and str(value).strip().lower() not in ("", "none", "null")


def _inside(given: dict[str, Any], part: str, key: str, depth: int) -> Iterator[Statement]:
    for own_key, value in given.items():
        own_part, name = _split(str(own_key))
        where = own_part or part
        if name in _NAMES:
            yield Statement(where, name, _object(value, key) if name in _PATTERNS else value, key)
        elif isinstance(value, dict) and depth < _MAX_DEPTH and (name in COMPONENTS or name in _WHOLE):
            yield from _inside(value, name if name in COMPONENTS else where, key, depth + 1)


def _split(key: str) -> tuple[str, str]:
    """``(part, name)`` of a key; the name is the whole key if nothing known stands before it."""
    head, _, tail = key.rpartition(".")
    tail = tail.lower()
    if tail in _NAMES or tail in _WHOLE:
        words = head.split(".")
        while words and words[-1].lower() in _WHOLE:
            words.pop()
        while words and words[0].lower() in _WHOLE:
            words.pop(0)
        head = ".".join(words)
        if not head:
            return "", tail
        of_module = "." in head or head.startswith(tuple(KOHYA_COMPONENTS))
        if head in COMPONENTS or (tail in ALPHAS and of_module) or (tail in _CLEAR and head != "modelspec"):
            return head, tail
        return "", key
    for part in sorted(COMPONENTS, key=len, reverse=True):
        if key.startswith(f"{part}_") and key.removeprefix(f"{part}_").lower() in _NAMES:
            return part, key.removeprefix(f"{part}_").lower()
    return "", key


def _object(text: Any, key: str) -> Any:
    """The JSON object of a value; the value itself if it is none."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return text
    if len(text) > MAX_CONFIG:
        raise LoraFormatError(f"the metadata {key!r} has {len(text)} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
