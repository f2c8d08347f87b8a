"""Many regular expressions matched at once, in time linear in the name, whatever they are.

Thompson's construction (CACM 1968): the set of all places in the patterns that the letters so far lead to is
carried along, so nothing is ever tried twice. The sets that occur are kept with their successors, as most
names of a model differ in a few letters only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .nodes import ANY, Choice, Letters, Look, Node, Place, Repeat, Sequence
from .syntax import PatternError

_MAX_NODES = 30_000
_KEPT = 200_000  # entries of the sets that are kept; then they are made anew
_PLACES = {"A": 1, "$": 2, "Z": 4, "b": 8, "B": 16}
_FIRST_LOOK = 32


class TooMuchWorkError(PatternError):
    """Matching would take longer than names and patterns of a model ever do."""


class Work:
    """How many steps matching has taken, and how many it may take: more where there are more names."""

    _ALWAYS, _PER_LETTER, _MOST = 2_000_000, 30, 30_000_000

    def __init__(self) -> None:
        self._done = self._letters = 0

    def name(self, name: str) -> None:
        self._letters += len(name)

    def add(self, steps: int) -> None:
        self._done += steps
        if self._done > min(self._ALWAYS + self._PER_LETTER * self._letters, self._MOST):
            raise TooMuchWorkError("too much work for the names of this file")


@dataclass(slots=True)
class _Vertex:
    """A place in the patterns, and where the next letter, or none at all, leads to."""

    by_letter: dict[str, int] | None = None
    by_set: list[tuple[Letters, int]] = field(default_factory=list)
    free: list[tuple[int, int]] = field(default_factory=list)  # (condition or 0, vertex)
    accepts: list[int] | None = None  # the numbers of the patterns that are matched here


@dataclass(slots=True)
class _Closed:
    """A set of vertices under conditions that hold: what is matched, and the sets that letters lead to."""

    accepts: tuple[int, ...]
    vertices: tuple[int, ...]
    after: dict[str, _Set] = field(default_factory=dict)


@dataclass(slots=True)
class _Set:
    """A set of vertices before its conditions are looked at; ``wanted`` are those that matter."""

    vertices: tuple[int, ...]
    wanted: int
    closed: dict[int, _Closed] = field(default_factory=dict)


class Automaton:
    """Patterns that match a name from its beginning on; PEFT's keys may also begin behind any dot."""

    def __init__(self, work: Work, behind_dots: bool = False) -> None:
        self._work = work
        self._vertices = [_Vertex()]
        self._made: dict[tuple[int, Node], int] = {}  # what patterns begin with alike is there once
        self._looks: list[tuple[Look, Automaton]] = []
        self._sets: dict[tuple[int, ...], _Set] = {}
        self._kept = 0
        self._root = 0
        if behind_dots:
            self._root = self._add(0, Repeat(Sequence((Repeat(ANY, 0, None), ".")), 0, 1))

    def add(self, sequence: Sequence, number: int, end: str = "$") -> None:
        """Take in a pattern; ``end`` says where a match must end: the kind of a ``Place``, "" for anywhere.

        Raises:
            PatternError: if it is too large.
        """
        last = self._add(self._root, sequence)
        last = self._add(last, Place(end)) if end else last
        vertex = self._vertices[last]
        vertex.accepts = [*(vertex.accepts or []), number]

    def matches(self, name: str, start: int = 0) -> set[int]:
        """Return the numbers of the patterns that match."""
        found: set[int] = set()
        state = self._set({0})
        for place in range(start, len(name) + 1):
            holding = self._holding(state.wanted, name, place) if state.wanted else 0
            closed = state.closed.get(holding) or self._close(state, holding)
            found.update(closed.accepts)
            if place == len(name) or not closed.vertices:
                break
            state = closed.after.get(name[place]) or self._move(closed, name[place])
        self._work.add(place + 1 - start)
        return found

    def _close(self, state: _Set, holding: int) -> _Closed:
        vertices = self._reach(state.vertices, holding)
        accepts = (number for each in vertices for number in self._vertices[each].accepts or ())
        closed = state.closed[holding] = _Closed(tuple(accepts), tuple(sorted(vertices)))
        self._kept += len(vertices) + 1
        return closed

    def _move(self, closed: _Closed, letter: str) -> _Set:
        self._work.add(len(closed.vertices))
        targets: set[int] = set()
        for each in closed.vertices:
            vertex = self._vertices[each]
            if vertex.by_letter and letter in vertex.by_letter:
                targets.add(vertex.by_letter[letter])
            targets.update(target for letters, target in vertex.by_set if letters.has(letter))
        after = self._set(targets)
        closed.after[letter] = after
        return after

    def _set(self, vertices: set[int]) -> _Set:
        key = tuple(sorted(vertices))
        known = self._sets.get(key)
        if known is not None:
            return known
        if self._kept > _KEPT:
            self._sets, self._kept = {}, 0
        reached = self._reach(key, -1)
        wanted = 0
        for each in reached:
            for condition, _ in self._vertices[each].free:
                wanted |= condition
        made = self._sets[key] = _Set(key, wanted)
        self._kept += len(key) + 1
        return made

    def _reach(self, vertices: Iterable[int], holding: int) -> set[int]:
        """The vertices and those behind them without a letter; ``holding`` -1 is every condition."""
        reached, open_ = set(vertices), list(vertices)
        while open_:
            for condition, target in self._vertices[open_.pop()].free:
                if condition & holding == condition and target not in reached:
                    reached.add(target)
                    open_.append(target)
        self._work.add(len(reached))
        return reached

    def _holding(self, wanted: int, name: str, place: int) -> int:
        """Which of the wanted conditions hold at a place of the name."""
        holding = 0
        if place == 0:
            holding |= _PLACES["A"]
        if place == len(name):
            holding |= _PLACES["$"] | _PLACES["Z"]
        elif place == len(name) - 1 and name[place] == "\n":
            holding |= _PLACES["$"]
        if wanted & (_PLACES["b"] | _PLACES["B"]) and name:
            before, after = place > 0 and _is_word(name[place - 1]), _is_word(name[place : place + 1])
            holding |= _PLACES["b"] if before != after else _PLACES["B"]
        for index, (look, automaton) in enumerate(self._looks):
            if wanted & (_FIRST_LOOK << index) and self._is_seen(look, automaton, name, place):
                holding |= _FIRST_LOOK << index
        return holding & wanted

    @staticmethod
    def _is_seen(look: Look, automaton: Automaton, name: str, place: int) -> bool:
        if look.ahead:
            return bool(automaton.matches(name, place)) != look.negated
        start = place - look.width  # all that it matches has this width, so a match ends here
        return (start >= 0 and bool(automaton.matches(name, start))) != look.negated

    def _vertex(self) -> int:
        if len(self._vertices) >= _MAX_NODES:
            raise PatternError("too large once its repeats are written out")
        self._vertices.append(_Vertex())
        return len(self._vertices) - 1

    def _add(self, start: int, node: Node) -> int:
        """Build a node behind a vertex; return the vertex behind it. The same is built once."""
        if isinstance(node, Sequence):
            for each in node.nodes:
                start = self._add(start, each)
            return start
        end = self._made.get((start, node))
        if end is None:
            end = self._made[start, node] = self._build(start, node)
        return end

    def _build(self, start: int, node: Node) -> int:
        if isinstance(node, Repeat):
            return self._repeat(start, node)
        end, vertex = self._vertex(), self._vertices[start]
        if isinstance(node, str):
            vertex.by_letter = vertex.by_letter or {}
            vertex.by_letter[node] = end
        elif isinstance(node, Letters):
            vertex.by_set.append((node, end))
        elif isinstance(node, Place):
            vertex.free.append((_PLACES[node.kind], end))
        elif isinstance(node, Look):
            vertex.free.append((self._look(node), end))
        elif isinstance(node, Choice):
            for branch in node.branches:
                self._vertices[self._add(self._behind(start), branch)].free.append((0, end))
        return end

    def _repeat(self, start: int, node: Repeat) -> int:
        for _ in range(node.least):
            start = self._add(self._behind(start), node.node)
        end = self._vertex()
        if node.most is None:
            loop = self._behind(start)
            self._vertices[self._add(self._behind(loop), node.node)].free.append((0, loop))
            start = loop
        for _ in range(node.least, node.most or 0):
            self._vertices[start].free.append((0, end))
            start = self._add(self._behind(start), node.node)
        self._vertices[start].free.append((0, end))
        return end

    def _behind(self, start: int) -> int:
        """A new vertex that is reached from another without a letter."""
        made = self._vertex()
        self._vertices[start].free.append((0, made))
        return made

    def _look(self, look: Look) -> int:
        inside = Automaton(self._work)
        inside.add(look.node, 0, "")
        self._looks.append((look, inside))
        return _FIRST_LOOK << (len(self._looks) - 1)


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_"
