"""What a regular expression from a file is made of, once it has been parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

_CATEGORIES: Mapping[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "s": str.isspace,
    "w": lambda letter: letter.isalnum() or letter == "_",
}


@dataclass(frozen=True, slots=True)
class Letters:
    """One character out of a set, such as ``.``, ``[a-z]`` or a category like ``d``."""

    singles: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    categories: frozenset[str] = frozenset()
    negated: bool = False

    def has(self, letter: str) -> bool:
        found = letter in self.singles or any(first <= letter <= last for first, last in self.ranges)
        return (found or any(_is_of(letter, each) for each in self.categories)) != self.negated


@dataclass(frozen=True, slots=True)
class Sequence:
    """One node after another."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences."""

    branches: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node repeated ``least`` to ``most`` times, lazily or greedily; None is without end."""

    node: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """A condition on the place between two letters: ``A``, ``Z``, ``$``, ``b`` or ``B``."""

    kind: str


@dataclass(frozen=True, slots=True)
class Look:
    """A condition on what follows, or on what lies ``width`` letters before."""

    node: Sequence
    ahead: bool
    negated: bool
    width: int = 0


Node = str | Letters | Sequence | Choice | Repeat | Place | Look
ANY = Letters(frozenset("\n"), negated=True)


def width_of(node: Node) -> tuple[int, int | None]:
    """The least and the largest number of letters that a node takes; None is without end."""
    if isinstance(node, str | Letters):
        return 1, 1
    if isinstance(node, Sequence):
        parts = [width_of(each) for each in node.nodes]
        mosts = [most for _, most in parts]
        return sum(least for least, _ in parts), None if None in mosts else sum(m or 0 for m in mosts)
    if isinstance(node, Choice):
        parts = [width_of(each) for each in node.branches]
        mosts = [most for _, most in parts]
        return min(least for least, _ in parts), None if None in mosts else max(m or 0 for m in mosts)
    if isinstance(node, Repeat):
        least, most = width_of(node.node)
        whole = 0 if most == 0 else None if most is None or node.most is None else most * node.most
        return least * node.least, whole
    return 0, 0


def _is_of(letter: str, category: str) -> bool:
    return _CATEGORIES[category.lower()](letter) == category.islower()
