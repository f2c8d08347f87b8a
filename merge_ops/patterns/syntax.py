"""The regular expressions that PEFT's configurations may hold, taken apart without Python's engine.

Python's ``re`` backtracks and holds the interpreter while it does, so one pattern from a file could stop a
whole server. What is parsed here is the part of its syntax that describes a regular language; the rest
(back-references, flags, atomic groups) is refused.
"""

from __future__ import annotations

from .nodes import ANY, Choice, Letters, Look, Node, Place, Repeat, Sequence, width_of

_DEEPEST = 40  # groups in groups
_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_HEX = {"x": 2, "u": 4, "U": 8}
_DIGITS = "0123456789"
_LOOKS = {"?=": (True, False), "?!": (True, True), "?<=": (False, False), "?<!": (False, True)}


class PatternError(ValueError):
    """The text is not a regular expression, or of a part of the syntax that is not matched here."""


_PLACES = {"A": Place("A"), "Z": Place("Z"), "b": Place("b"), "B": Place("B")}
_SIGNS: dict[str, Node] = {".": ANY, "^": Place("A"), "$": Place("$")}


def parse(pattern: str) -> Choice:
    """Return the branches of a regular expression.

    Raises:
        PatternError: if it is none, or holds what cannot be matched in linear time; the text says what.
    """
    parser = _Parser(pattern)
    choice = parser.choice(0)
    if parser.place < len(pattern):
        raise PatternError("a closing parenthesis without an opening one")
    return choice


class _Parser:
    """Reads a pattern from left to right; each method leaves ``place`` behind what it has read."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.names = text, 0, set[str]()

    def choice(self, depth: int) -> Choice:
        if depth > _DEEPEST:
            raise PatternError(f"groups more than {_DEEPEST} deep")
        branches = [self._sequence(depth)]
        while self._take("|"):
            branches.append(self._sequence(depth))
        return Choice(tuple(branches))

    def _sequence(self, depth: int) -> Sequence:
        nodes: list[Node] = []
        while self.place < len(self.text) and self.text[self.place] not in "|)":
            if self.text.startswith("(?#", self.place):
                self.place = self._find(")") + 1
                continue
            counts = self._counts()
            if counts is None:
                nodes.append(self._one(depth))
                continue
            if not nodes or isinstance(nodes[-1], Place | Repeat):
                raise PatternError("a repeat with nothing to repeat")
            nodes.append(Repeat(nodes.pop(), *counts))
        return Sequence(tuple(nodes))

    def _counts(self) -> tuple[int, int | None] | None:
        """The least and most times of the repeat that begins here; None if none does."""
        sign = self.text[self.place]
        if sign in "*+?":
            self.place += 1
            counts = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif sign == "{" and (braced := self._braces()) is not None:
            counts = braced
        else:
            return None
        self._take("?")
        if self.text.startswith("+", self.place):
            raise PatternError("a possessive repeat, which only a backtracking engine has")
        return counts

    def _braces(self) -> tuple[int, int | None] | None:
        end = self.text.find("}", self.place)
        least, comma, most = self.text[self.place + 1 : max(end, 0)].partition(",")
        inside = least + most
        if end < 0 or not (inside or comma) or inside.strip(_DIGITS) or len(inside) > 20:
            return None
        self.place = end + 1
        lowest = int(least or 0)
        highest = int(most) if most else None if comma else lowest
        if highest is not None and highest < lowest:
            raise PatternError("a repeat whose most is below its least")
        return lowest, highest

    def _one(self, depth: int) -> Node:
        letter = self.text[self.place]
        self.place += 1
        if letter == "(":
            return self._group(depth)
        if letter == "[":
            return self._letters()
        if letter == "\\":
            return self._escape(False)
        return _SIGNS.get(letter, letter)

    def _group(self, depth: int) -> Node:
        opening = next((each for each in (*_LOOKS, "?:", "?P<", "?") if self._take(each)), "")
        if opening == "?P<":
            name = self.text[self.place : self._find(">")]
            self.place += len(name) + 1
            if not name.isidentifier() or name in self.names:
                raise PatternError(f"a group that cannot be called {name[:20]!r}")
            self.names.add(name)
        elif opening == "?":
            raise PatternError("flags, a back-reference or a condition, which cannot be matched name by name")
        inner = self.choice(depth + 1)
        if not self._take(")"):
            raise PatternError("an opening parenthesis without a closing one")
        if opening in _LOOKS:
            return _look(inner, *_LOOKS[opening])
        return inner.branches[0] if len(inner.branches) == 1 else inner

    def _letters(self) -> Node:
        negated, singles, ranges, categories = (
            self._take("^"),
            set[str](),
            list[tuple[str, str]](),
            set[str](),
        )
        start = self.place
        while self.place == start or not self.text.startswith("]", self.place):
            first = self._member()
            if self.text.startswith("-", self.place) and self.text[self.place + 1 : self.place + 2] not in (
                "",
                "]",
            ):
                self.place += 1
                last = self._member()
                if isinstance(first, Letters) or isinstance(last, Letters) or last < first:
                    raise PatternError("a range of letters that has no end or no beginning")
                ranges.append((first, last))
            elif isinstance(first, Letters):
                categories |= first.categories
            else:
                singles.add(first)
        self.place += 1
        return Letters(frozenset(singles), tuple(ranges), frozenset(categories), negated)

    def _member(self) -> str | Letters:
        if self.place >= len(self.text):
            raise PatternError("an opening bracket without a closing one")
        self.place += 1
        if self.text[self.place - 1] != "\\":
            return self.text[self.place - 1]
        node = self._escape(True)
        if isinstance(node, str | Letters):
            return node
        raise PatternError("a place in a set of letters")

    def _escape(self, in_set: bool) -> Node:
        letter = self.text[self.place : self.place + 1]
        self.place += 1
        if letter and letter in "dDsSwW":
            return Letters(categories=frozenset(letter))
        if letter == "b" and in_set:
            return "\b"
        if letter in _PLACES and not in_set:
            return _PLACES[letter]
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        if letter in _HEX:
            return self._number(_HEX[letter])
        if not letter or (letter.isascii() and letter.isalnum()):
            raise PatternError(f"{chr(92)}{letter}, which is a back-reference or no escape")
        return letter

    def _number(self, digits: int) -> str:
        written = self.text[self.place : self.place + digits]
        self.place += digits
        if len(written) < digits or written.strip("0123456789abcdefABCDEF") or int(written, 16) > 0x10FFFF:
            raise PatternError("an escape with a number that is no letter")
        return chr(int(written, 16))

    def _find(self, sign: str) -> int:
        place = self.text.find(sign, self.place)
        if place < 0:
            raise PatternError(f"a group without its {sign}")
        return place

    def _take(self, text: str) -> bool:
        if not self.text.startswith(text, self.place):
            return False
        self.place += len(text)
        return True


def _look(inner: Choice, ahead: bool, negated: bool) -> Look:
    least, most = width_of(inner)
    if not ahead and least != most:
        raise PatternError("a look-behind of several widths")
    return Look(Sequence((inner,)), ahead, negated, least)
