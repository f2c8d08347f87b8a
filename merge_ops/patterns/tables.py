"""Patterns from files, such as those of a PEFT configuration, which nobody has checked.

They mean what Python's ``re`` makes of them in PEFT, and are matched in time linear in the names: never by an
engine that backtracks.
"""

from __future__ import annotations

import re  # to escape; nothing is matched with it
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import LoraFormatError, shown
from .automaton import Automaton, Work
from .plain import PlainPatterns, is_plain, plain_sequence, plain_text
from .syntax import PatternError, parse

_WAY_OUT = "write the names out"


class Patterns:
    r"""Regular expressions by number.

    As keys, they match a whole name or what follows any dot in it, as in PEFT's ``get_pattern_key``:
    ``re.match(rf"(.*\.)?({pattern})$", name)``. Otherwise they match whole names, as ``re.fullmatch`` does.

    Raises:
        LoraFormatError: for a text that is not a regular expression or cannot be matched in linear time; the
            message shows it.
    """

    def __init__(self, patterns: Iterable[str], keys: bool = True) -> None:
        self._texts, self._keys, self._work = list(patterns), keys, Work()
        self._plain, self._rest = PlainPatterns(self._work), self._automaton()
        self._every: Automaton | None = None
        self._has_more = False
        for number, pattern in enumerate(self._texts):
            plain = plain_text(pattern, "part" if keys else "whole")
            if plain is not None:
                self._plain.add(plain, number)
            else:
                self._parse(pattern, number)

    def first(self, name: str) -> int | None:
        """Return the number of the first pattern that matches a name; None if none does."""
        return min(self.matches(name), default=None)

    def matches(self, name: str) -> Iterator[int]:
        """Yield the numbers of all patterns that match a name, some of them more than once.

        Raises:
            LoraFormatError: if that takes more work than names of a model ever do.
        """
        self._work.name(name)
        try:
            if "\n" in name:  # a line end is no letter of a plain pattern, and ``$`` matches before it
                yield from self._with_line_ends().matches(name)
            else:
                yield from self._plain.matches(name)
                if self._has_more:
                    yield from self._rest.matches(name)
        except PatternError as error:
            raise _refused(max(self._texts, key=len), error) from error

    def _parse(self, pattern: str, number: int) -> None:
        try:
            for branch in parse(pattern).branches:
                plain = plain_sequence(branch, "part" if self._keys else "whole")
                if plain is not None:
                    self._plain.add(plain, number)
                else:
                    self._rest.add(branch, number, "$" if self._keys else "Z")
                    self._has_more = True
        except PatternError as error:
            raise _refused(pattern, error) from error

    def _automaton(self) -> Automaton:
        return Automaton(self._work, behind_dots=self._keys)

    def _with_line_ends(self) -> Automaton:
        """All patterns in one automaton, for names that no file can have."""
        if self._every is None:
            self._every = self._automaton()
            for number, pattern in enumerate(self._texts):
                for branch in parse(pattern).branches:
                    self._every.add(branch, number, "$" if self._keys else "Z")
        return self._every


def _refused(pattern: str, error: PatternError) -> LoraFormatError:
    return LoraFormatError(f"{shown(pattern)} is not a pattern that can be matched: {error}; {_WAY_OUT}")


class ByPattern(dict[str, Any]):
    """A table of PEFT by pattern, such as ``alpha_pattern``, whose patterns are prepared once."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__(table)
        self.patterns = Patterns(table)
        self._values = list(table.values())

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return ByPattern, (dict(self),)

    def of(self, module: str, otherwise: Any) -> Any:
        """Return the value of the first pattern that matches the path of a module."""
        number = self.patterns.first(module)
        return otherwise if number is None else self._values[number]


class WholePattern(str):
    """A pattern for whole names, such as ``feedforward_modules``, which is prepared once."""

    patterns: Patterns

    def __new__(cls, pattern: str) -> WholePattern:
        made = super().__new__(cls, pattern)
        made.patterns = Patterns([pattern], keys=False)
        return made

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return WholePattern, (str(self),)

    def fits(self, name: str) -> bool:
        """Return whether the pattern matches a whole name."""
        return self.patterns.first(name) is not None


class NameEnds(list[str]):
    """Names that are compared with the ends of others, such as ``modules_to_save``; sorted out once."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self._known = frozenset(self)
        self._lengths = sorted({len(name) for name in self})

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return NameEnds, (list(self),)

    def fit(self, name: str) -> bool:
        """Return whether a name ends with one of these, as ``str.endswith`` has it."""
        return any(name[len(name) - size :] in self._known for size in self._lengths if size <= len(name))


def pattern_of(name: str) -> str:
    """Return a pattern for one module as PEFT writes it: its name, escaped if that means something else."""
    return name if is_plain(name) else re.escape(name)
