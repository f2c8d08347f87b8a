"""The text of block strengths: ``selector:number`` terms, a preset, or a vector of A1111.

    text     = preset | vector | [number] {term}      separated by spaces or commas
    term     = selector ":" number | "rest:" number
    selector = part {"." part}                        all parts must hold
    part     = word | word["."]number["-"number]

A word says where a layer is (``WHERE``), what it is (``WHAT``), or whether it makes picture or sound
(``STREAM``). The strength of a layer is the product of one term that says where, one that says what, and one
of a stream. If several say the same, the most specific one counts: a term that says more of these before one
that says less, a numbered one before one without a number, fewer blocks before more, the part before the
whole; then the later one. Layers that no term selects get ``rest``, or the bare number in front, or 1. Sorts
of layers mean the diffusion or language model, ``te.attn`` the text encoders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from ..errors import ParameterError
from .names import facts_of
from .presets import PRESETS, VECTORS, expand_vector
from .selectors import Part, Term, format_number, quote, read_selector

MAX_STRENGTH = 100.0


@dataclass(frozen=True, slots=True)
class BlockStrengths:
    """Strengths by block and by sort of layer; ``parse`` reads the text that ``str`` writes as the same.

    ``given`` is the preset or the vector that the terms come from, if they come from one.
    """

    terms: tuple[Term, ...]
    rest: float = 1.0
    given: str = ""

    @classmethod
    def parse(cls, text: str) -> BlockStrengths:
        """Read the text; the docstring of this module has its grammar.

        Raises:
            ParameterError: for an unknown selector, a value that is not a number, or a selector given twice.
        """
        joined = ":".join(part.strip() for part in text.split(":"))
        words = [word for word in re.split(r"[\s,;]+", joined) if word]
        if not words:
            raise ParameterError("the block strengths are empty; write for example 'down:0.5 mid:1'")
        if len(words) == 1 and words[0].upper() in PRESETS:
            name = words[0].upper()
            return cls._of_terms(PRESETS[name].split(), name)
        if len(words) > 1 and not any(":" in word for word in words):
            return cls._of_vector(words)
        return cls._of_terms(words)

    @classmethod
    def _of_vector(cls, words: list[str]) -> BlockStrengths:
        values = [format_number(_strength(word, word)) for word in words]
        if len(values) not in VECTORS:
            *most, last = map(str, VECTORS)
            raise ParameterError(
                f"a block vector has {', '.join(most)} or {last} values, not {len(values)}; "
                "or name the blocks, as in 'down:0.5 mid:1'"
            )
        return cls._of_terms(expand_vector(values).split(), ",".join(values))

    @classmethod
    def _of_terms(cls, words: list[str], given: str = "") -> BlockStrengths:
        strengths: dict[tuple[Part, ...], float] = {}
        for place, word in enumerate(words):
            selector, colon, number = word.rpartition(":")
            if not colon and place == 0 and _is_number(word):
                selector, number = "rest", word
            elif not selector or not number:
                hint = _preset_hint(word) if len(words) == 1 else ""
                raise ParameterError(
                    f"cannot read the block strength {quote(word)}; write selector:number{hint}"
                )
            parts = () if selector.lower() == "rest" else read_selector(selector)
            if parts in strengths:
                raise ParameterError(f"the block strengths give {quote(selector)} twice; keep one")
            strengths[parts] = _strength(number, word)
        rest = strengths.pop((), 1.0)
        return cls(tuple(Term(parts, strength) for parts, strength in strengths.items()), rest, given)

    def factor(self, layer: str) -> float:
        """Return what the weight of the LoRA is multiplied by in a layer."""
        facts = facts_of(layer)
        chosen = [term for term in reversed(self.terms) if term.selects(facts)]
        if not chosen:
            return self.rest
        product, covered = 1.0, frozenset[str]()
        for term in sorted(chosen, key=lambda term: term.precedence, reverse=True):
            if not term.aspects & covered:
                product, covered = product * term.strength, covered | term.aspects
        return product

    def without_layers(self, layers: Iterable[str]) -> list[str]:
        """Return the selectors that select none of the layers.

        A preset or a vector counts as a whole, because it names blocks that many LoRAs do not have.
        """
        facts = [facts_of(layer) for layer in layers]
        terms = [term for term in self.terms if not self.given or term.parts != (Part("te"),)]
        lost = [term.selector for term in terms if not any(term.selects(each) for each in facts)]
        if not self.given:
            return lost
        return [self.given] if lost and len(lost) == len(terms) else []

    def __str__(self) -> str:
        if self.given:
            return self.given
        rest = [] if self.rest == 1 and self.terms else [f"rest:{format_number(self.rest)}"]
        return " ".join((*rest, *map(str, self.terms)))


def block_strengths(given: str | BlockStrengths | None) -> BlockStrengths | None:
    """Read block strengths from what a user gives: text, strengths already read, or nothing.

    >>> strengths = merge_ops.blocks.block_strengths("down:0.5 mid:1 attn:0.8")
    >>> strengths.factor("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    0.8

    Raises:
        ParameterError: for what is not text, or for one of the reasons of ``BlockStrengths.parse``.
    """
    if given is None or isinstance(given, BlockStrengths):
        return given
    if not isinstance(given, str):
        raise ParameterError(f"block strengths are text such as 'down:0.5 mid:1', not {type(given).__name__}")
    return BlockStrengths.parse(given) if given.strip() else None


def _strength(number: str, word: str) -> float:
    if not _is_number(number):
        random = "; random values cannot be repeated" if number.upper() in ("R", "U", "X") else ""
        raise ParameterError(f"the block strength {quote(word)} has no number{random}; write selector:number")
    value = float(number)
    if not abs(value) <= MAX_STRENGTH:
        raise ParameterError(f"the block strength {quote(word)} is outside [-100, 100]")
    return value + 0.0  # turns a negative zero into zero


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text)) and "_" not in text
    except ValueError:
        return False


def _preset_hint(word: str) -> str:
    close = get_close_matches(word.upper(), PRESETS, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
