"""Regular expressions from files, matched in time linear in the names: never by an engine that backtracks."""

from .tables import ByPattern, NameEnds, Patterns, WholePattern, pattern_of

__all__ = ["ByPattern", "NameEnds", "Patterns", "WholePattern", "pattern_of"]
