"""The strength of a row over the sampling, as the text behind ``:steps=``. Needs neither ComfyUI nor torch.

0-0.25                 on for the first quarter of the sampling, off for the rest
0-0.2:1 0.5-1:0.4      several spans, each with a factor of the row's strength
0:1 0.5:0.2 1:0        a curve through points share:factor, straight between them

A share is one of the way from noise to image, as in ComfyUI's own hooks: it becomes a noise level, so it
means the same for every sampler, every number of steps, and image to image. ``web/js/list/steps.js`` says
what is wrong with a text while it is typed; both are tested over ``tests/nodes/steps_cases.json``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ...merge_ops.errors import ParameterError
from .lora_text import MAX_STRENGTH

MAX_WINDOWS = 32
_MAX_WORDS = 64
PARTS = 10  # a slope of a curve is followed in tenths of the sampling
_SHARE = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FACTOR = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"
_SPAN = re.compile(rf"({_SHARE})-({_SHARE})(?::({_FACTOR}))?", re.ASCII | re.IGNORECASE)
_POINT = re.compile(rf"({_SHARE}):({_FACTOR})", re.ASCII | re.IGNORECASE)


class Span(NamedTuple):
    """A part of the sampling, in shares from 0 to 1, and the factor of the strength in it."""

    start: float
    end: float
    factor: float


class Window(NamedTuple):
    """A part of the sampling in which no strength changes, and the factor of each LoRA in it."""

    start: float
    end: float
    factors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Steps:
    """The factor of a LoRA's strength over the sampling: spans in order; 0 where there is none."""

    spans: tuple[Span, ...]

    @classmethod
    def parse(cls, text: str) -> Steps | None:
        """Read the text behind ``:steps=``; None if it is empty.

        Raises:
            ParameterError: if it cannot be read.
        """
        one_space = " ".join(text.replace(",", " ").replace(";", " ").split())
        words = re.sub(r" ?([:-]) ?", r"\1", one_space).split()
        if not words:
            return None
        if len(words) > _MAX_WORDS:
            raise ParameterError(f"steps: there are {len(words)} spans or points; at most {_MAX_WORDS}")
        spans: list[Span] = []
        points: list[tuple[float, float]] = []
        for word in words:
            if match := _SPAN.fullmatch(word):
                spans.append(_span(match))
            elif match := _POINT.fullmatch(word):
                points.append(_point(match))
            else:
                raise ParameterError(
                    f"steps: cannot read {word!r}; write a span such as 0-0.25, or a curve such as 0:1 0.5:0"
                )
        if spans and points:
            raise ParameterError("steps: spans such as 0-0.25 and points such as 0.5:1 cannot be mixed")
        return cls(_spans(spans) if spans else _curve(points))

    def factor(self, start: float, end: float) -> float:
        """Return the factor in a part of the sampling that no span begins or ends in."""
        middle = (start + end) / 2
        return next((span.factor for span in self.spans if span.start <= middle < span.end), 0.0)


def cut_into_windows(steps: Sequence[Steps | None]) -> list[Window]:
    """Cut the sampling where a strength changes, for the steps of each LoRA; None keeps its strength.

    Raises:
        ParameterError: if these are too many windows: each may need a merge of its own.
    """
    ends = {edge for one in steps if one for span in one.spans for edge in (span.start, span.end)}
    windows: list[Window] = []
    for start, end in pairwise(sorted(ends | {0.0, 1.0})):
        factors = tuple(1.0 if one is None else one.factor(start, end) for one in steps)
        if windows and windows[-1].factors == factors:
            windows[-1] = windows[-1]._replace(end=end)
        else:
            windows.append(Window(start, end, factors))
    if len(windows) > MAX_WINDOWS:
        raise ParameterError(
            f"the steps= of the LoRAs cut the sampling into {len(windows)} windows; at most {MAX_WINDOWS} "
            "are merged: let spans of several LoRAs begin and end together"
        )
    return windows


def _span(match: re.Match[str]) -> Span:
    start, end = _share(match[1]), _share(match[2])
    if start >= end:
        raise ParameterError(f"steps: {match[0]} ends before it begins")
    return Span(start, end, 1.0 if match[3] is None else _factor(match[3], match[0]))


def _point(match: re.Match[str]) -> tuple[float, float]:
    return _share(match[1]), _factor(match[2], match[0])


def _share(text: str) -> float:
    share = float(text)
    if share > 1:
        raise ParameterError(f"steps: {text} is outside [0, 1]; 0.25 is the first quarter of the sampling")
    return share


def _factor(text: str, word: str) -> float:
    factor = float(text)
    if not abs(factor) <= MAX_STRENGTH:
        raise ParameterError(f"steps: the factor of {word} is outside [-100, 100]")
    return factor


def _spans(spans: list[Span]) -> tuple[Span, ...]:
    spans = sorted(spans)
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise ParameterError(
                f"steps: {one.start:g}-{one.end:g} and {other.start:g}-{other.end:g} overlap"
            )
    return tuple(spans)


def _curve(points: list[tuple[float, float]]) -> tuple[Span, ...]:
    """The spans of a curve: a slope is cut at tenths, and each part has the value of its middle."""
    if len(points) < 2:
        raise ParameterError("steps: a curve needs two points or more, such as 0:1 1:0")
    for (share, _), (following, _) in pairwise(points):
        if following < share:
            raise ParameterError(f"steps: the points go back from {share:g} to {following:g}")
    for (one, _), (_, _), (other, _) in zip(points, points[1:], points[2:], strict=False):
        if one == other:
            raise ParameterError(f"steps: {one:g} is given three times")
    if points[0][0] > 0:
        points = [(0.0, points[0][1]), *points]
    if points[-1][0] < 1:
        points = [*points, (1.0, points[-1][1])]
    spans: list[Span] = []
    for (start, before), (end, after) in pairwise(points):
        inside = [i / PARTS for i in range(1, PARTS) if before != after and start < i / PARTS < end]
        for left, right in pairwise([start, *inside, end]):
            if left < right:
                share = ((left + right) / 2 - start) / (end - start)
                spans.append(Span(left, right, round(before + share * (after - before), 6)))
    return tuple(spans)
