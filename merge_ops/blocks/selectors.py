"""Selectors of layers by words such as ``down``, ``double.0-9`` or ``attn``, and how specific each is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import ParameterError, did_you_mean
from .names import Facts

# word -> how specific it is; IN and OUT are A1111's blocks, out is the output projection of an attention
WHERE = {
    "unet": 1, "te": 1, "te1": 2, "te2": 2, "te3": 2, "te4": 2, "down": 3, "mid": 3, "up": 3, "blocks": 3,
    "refiner": 3, "double": 4, "single": 4, "IN": 5, "OUT": 5,
}  # fmt: skip
WHAT = {
    "attn": 1, "ff": 1, "resnet": 1, "proj": 1, "self_attn": 2, "cross_attn": 2, "conv": 2, "time": 2,
    "q": 3, "k": 3, "v": 3, "out": 3, "norm": 3,
}  # fmt: skip
# of models that make video and sound; the attention from one to the other belongs to the one that it changes
STREAM = {"audio": 1, "video": 1, "audio_to_video": 2, "video_to_audio": 2}
ASPECTS = {"where": WHERE, "stream": STREAM, "what": WHAT}
ALIASES = {
    "model": "unet", "dit": "unet", "base": "te", "m00": "mid", "middle": "mid", "joint": "double",
    "layers": "blocks", "attn1": "self_attn", "attn2": "cross_attn", "mlp": "ff", "mod": "norm",
    "a2v": "audio_to_video", "v2a": "video_to_audio",
}  # fmt: skip
WORDS = tuple(word for words in ASPECTS.values() for word in words)
_NUMBERED = {
    "te",
    "te1",
    "te2",
    "te3",
    "te4",
    "down",
    "up",
    "blocks",
    "refiner",
    "double",
    "single",
    "IN",
    "OUT",
}
_SIZES = {"down": 3, "up": 3, "blocks": 2}  # how many of LDM's blocks one number stands for
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_WITH_RANGE = re.compile(rf"([a-z_]+){_RANGE.pattern}")
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Part:
    """One word of a selector, with the first and last number of its blocks if it has numbers."""

    word: str
    first: int | None = None
    last: int | None = None

    def holds(self, facts: Facts) -> bool:
        """Return True if a layer of which these facts are known is one that the word selects."""
        if self.word == "video":  # what makes no sound: a name says so of sound only
            return "unet" in facts and "audio" not in facts
        if self.word not in facts:
            return False
        number = facts[self.word]
        return self.first is None or (
            number is not None and self.last is not None and self.first <= number <= self.last
        )

    @property
    def aspect(self) -> str:
        """What the word says of a layer, one of ``ASPECTS``."""
        return next(aspect for aspect, words in ASPECTS.items() if self.word in words)

    @property
    def precedence(self) -> tuple[int, int, int]:
        """Greater for a more specific part: numbered, then fewer blocks, then the narrower word."""
        rank = ASPECTS[self.aspect][self.word]
        if self.first is None or self.last is None:
            return 0, 0, rank
        return 1, -(self.last - self.first + 1) * _SIZES.get(self.word, 1), rank

    def __str__(self) -> str:
        numbers = "" if self.first is None else f"{self.first}"
        numbers += "" if self.first == self.last else f"-{self.last}"
        if self.word in ("IN", "OUT"):
            return self.word.lower() + numbers
        return f"{self.word}.{numbers}" if numbers else self.word


@dataclass(frozen=True, slots=True)
class Term:
    """A selector and its strength."""

    parts: tuple[Part, ...]
    strength: float

    @property
    def aspects(self) -> frozenset[str]:
        """What it says of layers, some of ``ASPECTS``."""
        return frozenset(part.aspect for part in self.parts)

    @property
    def precedence(self) -> tuple[int, ...]:
        """Greater for a more specific term."""
        return len(self.aspects), *map(sum, zip(*(part.precedence for part in self.parts), strict=True))

    def selects(self, facts: Facts) -> bool:
        """Return True if the term applies to a layer of which these facts are known."""
        of_text = any(part.word.startswith("te") for part in self.parts)
        is_either = "te" in facts and "unet" in facts
        return (is_either or of_text == ("te" in facts)) and all(part.holds(facts) for part in self.parts)

    @property
    def selector(self) -> str:
        """The term without its strength."""
        return ".".join(map(str, self.parts))

    def __str__(self) -> str:
        return f"{self.selector}:{format_number(self.strength)}"


def read_selector(selector: str) -> tuple[Part, ...]:
    """Read the parts of a selector, in the order of ``ASPECTS``.

    Raises:
        ParameterError: for an unknown word, or for numbers after a word that has none.
    """
    parts: list[Part] = []
    for piece in selector.lower().split("."):
        numbers = _RANGE.fullmatch(piece)
        if numbers and parts and parts[-1].first is None:  # it is the number of the word before it
            parts[-1] = _numbered(parts[-1].word, numbers[1], numbers[2], selector)
        elif ALIASES.get(piece, piece) in ("in", *WORDS):
            parts.append(Part(ALIASES.get(piece, piece)))
        elif (match := _WITH_RANGE.fullmatch(piece)) is not None:
            parts.append(_numbered(ALIASES.get(match[1], match[1]), match[2], match[3], selector))
        else:
            raise _unknown(piece, selector)
    words = [part.word for part in parts]
    if "in" in words:
        raise ParameterError("the selector 'in' needs the number of a block, as in 'in4'; or use 'down'")
    if len(set(words)) < len(words):
        raise ParameterError(f"the selector {quote(selector)} has a word twice; write two terms instead")
    return tuple(sorted(parts, key=lambda part: list(ASPECTS).index(part.aspect)))


def format_number(value: float) -> str:
    """Write a number in the shortest form that reads back as the same."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def quote(text: str) -> str:
    """Quote what a user wrote, cut to a length that fits into a message."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _numbered(word: str, first: str, last: str | None, selector: str) -> Part:
    word = {"in": "IN", "out": "OUT"}.get(word, word)
    if word not in WORDS:
        raise _unknown(word, selector)
    if word not in _NUMBERED:
        raise ParameterError(
            f"the selector {quote(selector)} has a number, but {word!r} has no numbered blocks"
        )
    low, high = int(first), int(last or first)
    if low > high:
        raise ParameterError(f"the selector {quote(selector)} counts backwards; write {high}-{low}")
    return Part(word, low, high)


def _unknown(word: str, selector: str) -> ParameterError:
    whole = "" if word == selector.lower() else f" in {quote(selector)}"
    words = [w for w in (*WORDS, "rest") if w.islower()]
    common = [w for w in words if w == "audio" or w not in STREAM]
    known = get_close_matches(word[:_SHOWN], [*words, *ALIASES], n=1) or [*common, "in0", "out0"]
    return ParameterError(f"unknown block selector {quote(word)}{whole}{did_you_mean(word[:_SHOWN], known)}")
