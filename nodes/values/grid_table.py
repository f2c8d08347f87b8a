"""Where each picture of a grid goes, by the labels of sweeps. Needs no ComfyUI."""

from __future__ import annotations

import math
from dataclasses import dataclass

_ONE_ROW = 5  # a list of up to so many pictures is one row


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of picture numbers, None for an empty cell; headings of rows and columns, or captions."""

    rows: list[list[int | None]]
    left: list[str]  # one heading for each row, or none
    top: list[str]  # one heading for each column, or none
    captions: list[str]  # one caption for each picture, or none


def arrange(count: int, labels: list[str], columns: int = 0) -> Table:
    """Arrange pictures along two axes if their labels are the product of two sweeps, else in rows.

    ``columns`` is the length of a row; 0 chooses one. With three sweeps the first goes down and the others go
    across.
    """
    if labels and not columns:
        table = _two_axes(labels)
        if table is not None:
            return table
    width = columns or (count if count <= _ONE_ROW else math.ceil(math.sqrt(count)))
    padded = [*range(count), *[None] * (-count % width)]
    return Table([padded[i : i + width] for i in range(0, len(padded), width)], [], [], labels)


def _two_axes(labels: list[str]) -> Table | None:
    """None unless every value of the first axis occurs once with every value of the rest."""
    pairs = [tuple(label.split(", ", 1)) for label in labels]
    if any(len(pair) != 2 or "=" not in pair[0] for pair in pairs):
        return None
    if len({pair[0].partition("=")[0] for pair in pairs}) != 1:
        return None
    left, top = list(dict.fromkeys(p[0] for p in pairs)), list(dict.fromkeys(p[1] for p in pairs))
    places = {pair: i for i, pair in enumerate(pairs)}
    if len(places) != len(labels) or len(labels) != len(left) * len(top):
        return None
    return Table([[places[row, column] for column in top] for row in left], left, top, [])
