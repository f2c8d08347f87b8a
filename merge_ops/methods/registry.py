"""Merge methods and their parameters, declared once, in the signature of one function each.

    @merge_method("ties", "TIES", paper="arXiv:2306.01708")
    def ties(deltas, weights, *, density: Annotated[float, Param("Fraction kept.", min=0, max=1)] = 0.5): ...

There are three kinds of method (``KINDS``), by what the function is given:

- ``entrywise``: ``(deltas, weights)``. ``deltas`` is ``(n, ..., out, in)``, ``weights`` is ``(n,)``, the
  result is ``(..., out, in)``. Dim 0 is the LoRA, the last two are the matrix, anything between is batch.
- ``core``: ``(gram_up, gram_down, ranks, weights)``. The factors of all LoRAs are stacked, ``up (out, R)``
  with alpha and without weights, and ``down (R, in)``. The function sees only ``up.T @ up`` and ``down @
  down.T``, ``(..., R, R)`` in float64, the rank of each LoRA, and the weights ``(n,)``. It returns K ``(...,
  R, R)``, and the merge is ``up @ K @ down``: exact, and of rank R.
- ``coordinates``: as ``entrywise``, but each delta is given in the left singular basis that all share.

Keyword-only arguments annotated with ``Param`` are what a user sets: widgets, command line flags, checks and
the README's table are made from them. Keyword-only arguments named in ``SUPPLIED`` come from the engine and
are never shown.

A method keeps the ``LAWS``, or declares with ``breaks`` which it cannot keep and why. Tests, the README and
the nodes read that.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from ..errors import ParameterError, UnknownMethodError, did_you_mean

# what holds for every method in delta space unless it declares otherwise; tests/methods/test_laws.py
LAWS = {
    "alone_at_density_1": "At density 1, one LoRA merged alone at a weight is that LoRA at that strength.",
    "alone_at_every_density": "One LoRA merged alone at a weight is that LoRA at that strength.",
    "order": "The order of the LoRAs does not change the result.",
    "refactoring": "Rewriting a LoRA at another rank or alpha, with the same delta, changes nothing.",
    "sign": "Negative weights give the negative result.",
    "weighting": "A factor on one LoRA's weight is the same as that factor on the LoRA itself.",
    "homogeneous": "A factor on all weights, or on the scale, is a factor on the result.",
}
# what the engine hands to an entrywise method, and to one on cores
SUPPLIED = {
    "thresholds": "per LoRA, the magnitude below which entries are dropped: a share ``density`` is kept",
    "ceilings": "per LoRA, the magnitude from which on entries are dropped: a share ``outliers`` is",
    "statistics": "what the method's ``measure`` returned for the whole layer",
    "generator": "the source of random masks",
    "overwrite": "the function may use ``deltas`` up",
    "out": "None, or memory of the shape of the result, which the function may fill and return",
    "moments": "``(n, ..., R, R)``: per LoRA, the mean of ``z z.T``, ``z = down @ x``, on its own prompts",
    "places": "per LoRA, ``(its place in the list, the length of the list)``",
}
KINDS = ("entrywise", "core", "coordinates")
_TYPES = {float: "a number", int: "a whole number", bool: "True or False"}

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a method. The first five fields are declared, the others come from the signature."""

    help: str
    min: float | None = None
    max: float | None = None
    step: float | None = None
    advanced: bool = False
    name: str = ""
    type: type = float
    default: Any = None
    choices: tuple[str, ...] = ()

    def check(self, method: str, value: Any) -> Any:
        """Return the value in the parameter's type, or raise ParameterError."""
        if self.choices:
            if value not in self.choices:
                hint = did_you_mean(str(value), self.choices)
                raise ParameterError(f"{method}: {self.name} {value!r} is not a choice{hint}")
            return value
        is_wrong = isinstance(value, bool) != (self.type is bool) or not isinstance(value, int | float)
        if is_wrong or (self.type is int and value % 1):
            raise ParameterError(f"{method}: {self.name} must be {_TYPES[self.type]}, not {value!r}")
        if not math.isfinite(value):
            raise ParameterError(f"{method}: {self.name} is {value}; give a finite number")
        low = -math.inf if self.min is None else self.min
        high = math.inf if self.max is None else self.max
        if not low <= value <= high:
            raise ParameterError(f"{method}: {self.name} {value} is outside [{low:g}, {high:g}]")
        return self.type(value)


@dataclass(frozen=True, slots=True)
class Method:
    """A registered merge method. ``fn`` is the plain function and can be called directly."""

    name: str
    title: str
    fn: Callable[..., Any]
    params: tuple[Param, ...]
    paper: str
    linear: bool  # the result is sum(w_i * delta_i): exact on the factors, no full delta needed
    supplied: tuple[str, ...]
    breaks: dict[str, str] = field(default_factory=dict)  # name of a law to the reason why it does not hold
    kind: str = "entrywise"  # one of ``KINDS``
    measure: Callable[..., tuple[float, ...]] | None = (
        None  # statistics of a whole layer; see ``merge_method``
    )

    @property
    def needs_recording(self) -> bool:
        """True if the method is given moments, which come from a recording."""
        return "moments" in self.supplied

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.fn.__doc__ or "").strip().splitlines()[0]

    def resolve(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return every parameter with its value, checked, or its default.

        Raises:
            ParameterError: for an unknown name, with a suggestion, or a value that is not allowed.
        """
        known = {p.name: p for p in self.params}
        for name in given:
            if name not in known:
                if not known:
                    raise ParameterError(f"{self.name} takes no parameters, but {name!r} was given")
                raise ParameterError(f"{self.name} has no parameter {name!r}{did_you_mean(name, known)}")
        return {name: p.check(self.name, given.get(name, p.default)) for name, p in known.items()}


METHODS: dict[str, Method] = {}


def merge_method(
    name: str,
    title: str,
    *,
    paper: str,
    linear: bool = False,
    kind: str = "entrywise",
    breaks: dict[str, str] | None = None,
    measure: Callable[..., tuple[float, ...]] | None = None,
) -> Callable[[F], F]:
    """Register a merge function under ``name``; the function itself is returned unchanged.

    >>> @merge_method("top", "Top", paper="arXiv:0000.00000", breaks={"sign": "-w picks the smallest"})
    ... def top(deltas, weights, *, share: Annotated[float, Param("Of the result.", min=0, max=1)] = 1.0):
    ...     "Take the largest value of each entry."
    ...     return share * (deltas * weights.view(-1, 1, 1)).amax(dim=0)
    >>> merge_ops.merge(loras, [0.7, 0.3], "top", share=0.5).report.counts()
    {'merged': 2}

    Args:
        name: what users write.
        title: what menus show.
        paper: where the method comes from, ``arXiv:...``.
        linear: True if the result is ``sum(weights[i] * deltas[i])``, which needs no full delta.
        kind: what the function is given, one of ``KINDS``.
        measure: for an entrywise method that needs figures of a whole layer: a function of ``(tiles, weights,
            **params)``, where ``tiles()`` yields the deltas ``(n, rows, in)`` a few rows at a time, in a
            buffer that is reused. What it returns is handed on as ``statistics``.
        breaks: the ``LAWS`` that the method does not keep, with the reasons.
    """
    broken = dict(breaks or {})
    for law in broken:
        if law not in LAWS:
            raise ValueError(f"{name}: there is no law {law!r}{did_you_mean(law, LAWS)}")
    if kind not in KINDS:
        raise ValueError(f"{name}: there is no kind {kind!r}{did_you_mean(kind, KINDS)}")

    def register(fn: F) -> F:
        if name in METHODS:
            raise ValueError(f"merge method {name!r} is registered twice")
        params, supplied = _read_signature(fn)
        METHODS[name] = Method(name, title, fn, params, paper, linear, supplied, broken, kind, measure)
        return fn

    return register


def get_method(name: str) -> Method:
    """Return the method called ``name`` or raise UnknownMethodError with a suggestion."""
    if name not in METHODS:
        raise UnknownMethodError(f"unknown merge method {name!r}{did_you_mean(str(name), METHODS)}")
    return METHODS[name]


def _read_signature(fn: Callable[..., Any]) -> tuple[tuple[Param, ...], tuple[str, ...]]:
    keywords = [a for a in inspect.signature(fn).parameters.values() if a.kind is a.KEYWORD_ONLY]
    supplied = tuple(arg.name for arg in keywords if arg.name in SUPPLIED)
    given = [arg for arg in keywords if arg.name not in SUPPLIED]
    hints = _hints(fn, [arg.name for arg in given])
    params: list[Param] = []
    for arg in given:
        kind, declared = _annotated(fn, arg.name, hints[arg.name])
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        params.append(
            replace(
                declared, name=arg.name, type=str if choices else kind, default=arg.default, choices=choices
            )
        )
    for needing, param in (("thresholds", "density"), ("ceilings", "outliers")):
        if needing in supplied and not any(p.name == param for p in params):
            raise TypeError(f"{fn.__name__}: {needing} follow from the parameter {param}, which is missing")
    return tuple(params), supplied


def _hints(fn: Callable[..., Any], names: list[str]) -> dict[str, Any]:
    """The annotations of these arguments, evaluated; those of others may name what is not imported yet."""
    holder = SimpleNamespace(__annotations__={name: fn.__annotations__[name] for name in names})
    return get_type_hints(holder, getattr(inspect.unwrap(fn), "__globals__", {}), include_extras=True)


def _annotated(fn: Callable[..., Any], name: str, hint: Any) -> tuple[Any, Param]:
    args = get_args(hint)
    if len(args) != 2 or not isinstance(args[1], Param):
        raise TypeError(f"{fn.__name__}: annotate {name!r} as Annotated[type, Param(...)]")
    return args[0], args[1]
