"""Patterns that are names: most configurations list nothing else, and then a look-up takes their place.

A dot in a name stands for any letter in a pattern, so names that differ from a module's only where they have
dots are looked up too: by the places of the dots, counted from the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from .automaton import Work
from .nodes import ANY, Place, Repeat, Sequence

# where the name may begin in that of a module: with it, there or behind any dot, behind a dot, anywhere
Where = Literal["whole", "part", "behind a dot", "anywhere"]
_SIGNS = frozenset("^$*+?{}[]|()")
_ALL = Repeat(ANY, 0, None)
_Shapes = dict[tuple[int, int], dict[str, list[int]]]  # (wild, dots) -> letters -> numbers of patterns


@dataclass(frozen=True, slots=True)
class Plain:
    """A pattern without choices: its letters, and which of them may be any letter."""

    where: Where
    letters: str  # with a dot for any letter and for a dot
    wild: int  # bit k: any letter at the place k from the end
    dots: int  # bit k: a dot there


def is_plain(name: str) -> bool:
    """Return whether a name is a pattern for itself; a dot stands for any letter, and so for itself too."""
    return _SIGNS.isdisjoint(name) and "\\" not in name


def plain_text(pattern: str, where: Where) -> Plain | None:
    """Return a pattern that is a name, without parsing it; None for any other."""
    where, core = ("whole", pattern[1:]) if pattern.startswith("^") else (where, pattern)
    if core.startswith(".*"):
        is_behind = core.startswith(r".*\.")
        where, core = ("behind a dot", core[4:]) if is_behind else ("anywhere", core[2:])
    first, *escaped = core.removesuffix("$").split("\\")
    letters, wild = [first], [first]
    for piece in escaped:
        if not piece or (piece[0].isascii() and piece[0].isalnum()):
            return None
        letters += piece
        wild += [" ", piece[1:]]
    if not _SIGNS.isdisjoint("".join(wild)):
        return None
    return _plain(where, "".join(letters), "".join(wild))


def plain_sequence(sequence: Sequence, where: Where) -> Plain | None:
    """Return a parsed branch that is a name; None for any other."""
    nodes = list(_flat(sequence))
    if nodes and nodes[0] == Place("A"):
        where, nodes = "whole", nodes[1:]
    if nodes and nodes[0] == _ALL:
        is_behind = nodes[1:2] == ["."]
        where, nodes = ("behind a dot", nodes[2:]) if is_behind else ("anywhere", nodes[1:])
    if nodes and nodes[-1] in (Place("$"), Place("Z")):
        nodes.pop()
    if not all(isinstance(node, str) or node == ANY for node in nodes):
        return None
    letters = "".join(node if isinstance(node, str) else "." for node in nodes)
    return _plain(where, letters, "".join("." if node == ANY else " " for node in nodes))


def _flat(sequence: Sequence) -> Iterator[object]:
    for node in sequence.nodes:
        yield from _flat(node) if isinstance(node, Sequence) else (node,)


def _plain(where: Where, letters: str, wild: str) -> Plain:
    either = _dots(letters)
    return Plain(where, letters, _dots(wild), either & ~_dots(wild))


def _dots(text: str) -> int:
    """Bit k for a dot at the place k from the end."""
    mask, place = 0, text.rfind(".")
    while place >= 0:
        mask |= 1 << (len(text) - 1 - place)
        place = text.rfind(".", 0, place)
    return mask


class PlainPatterns:
    """Plain patterns by number; ``matches`` finds those of a name without a line end."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._tables: dict[Where, dict[int, _Shapes]] = {}

    def add(self, plain: Plain, number: int) -> None:
        """Take in a pattern under a number."""
        of_length = self._tables.setdefault(plain.where, {}).setdefault(len(plain.letters), {})
        by_letters = of_length.setdefault((plain.wild, plain.dots), {})
        by_letters.setdefault(plain.letters, []).append(number)

    def matches(self, name: str) -> Iterator[int]:
        """Yield the numbers of the patterns that match."""
        dots, size = _dots(name), len(name)
        for where, of_kind in self._tables.items():
            for length in _lengths(where, size, dots, of_kind):
                of_length = of_kind.get(length)
                if of_length:
                    self._work.add(len(of_length))
                    yield from self._of_length(name[size - length :], dots & ((1 << length) - 1), of_length)

    def _of_length(self, end: str, dots: int, of_length: _Shapes) -> Iterator[int]:
        for (wild, stated), by_letters in of_length.items():
            if stated & ~dots or dots & ~(wild | stated):
                continue
            letters = end
            if wild & ~dots:
                self._work.add(len(end))
                last = len(end) - 1
                letters = "".join("." if wild >> (last - i) & 1 else each for i, each in enumerate(end))
            yield from by_letters.get(letters, ())


def _lengths(where: Where, size: int, dots: int, known: Iterable[int]) -> Iterator[int]:
    """The lengths of the ends of a name at which a pattern of a kind may begin."""
    if where in ("whole", "part"):
        yield size
    if where == "anywhere":
        yield from (length for length in known if length <= size)
    elif where != "whole":
        rest = dots
        while rest:
            lowest = rest & -rest
            yield lowest.bit_length() - 1
            rest ^= lowest
