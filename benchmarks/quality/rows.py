"""The rows of the table: every registered method, and what needs a recording."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merge_ops import METHODS, Lora, Merged, ParameterError, merge

CHOSEN = (
    Path(__file__).parent / "chosen.json"
)  # settings by title, written by `python -m benchmarks.quality.choose`
BASELINE = "linear"
MASK_SEED = 5  # of methods that drop entries at random

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One way to merge.

    ``options`` are keywords of ``merge_ops.merge``, or of ``distill`` for rows that learn. ``tried`` are the
    settings among which training A decides; each replaces some of the options.
    """

    title: str
    clause: str
    options: Options = field(default_factory=dict)
    tried: tuple[Options, ...] = ()
    learned: str = ""  # "", calibrated or distilled
    style_prompts: int = 1  # how many subjects a style is recorded with

    def alternatives(self) -> Iterator[Row]:
        """The row at each setting that is tried, or the row itself."""
        for options in self.tried or ({},):
            yield replace(self, options=self.options | options, tried=())


_MEANS = ({"scale": 1.0}, {"scale": 1.5}, {"scale": 2.0}, {"scale": 3.0})  # what averages is weak
_VOTES = tuple({"density": density, "scale": scale} for density in (0.5, 0.8) for scale in (1.0, 1.3, 1.6))

# the settings that are tried of a method; one that is not named here is run at its defaults
TRIED: dict[str, tuple[Options, ...]] = {
    "ties": _VOTES,
    "dare_ties": _VOTES,
    "della": _VOTES,
    "knots_ties": _VOTES,
    "dare_linear": ({"density": 0.7}, {"density": 0.9}),
    "magnitude_prune": ({"density": 0.5}, {"density": 0.8}),
    "breadcrumbs": ({"density": 0.7}, {"density": 0.9}),
    "sce": tuple({"density": density, "scale": scale} for density in (0.5, 1.0) for scale in (1.0, 1.3, 1.6)),
    "even": ({"ridge": 0.3}, {"ridge": 1.0}, {"ridge": 3.0}),
    "tsv": ({"scale": 0.85}, {"scale": 1.0}, {"scale": 1.15}),
    "np": ({"mu": 0.1}, {"mu": 0.5}, {"mu": 2.0}),
    "slerp": _MEANS,
    "karcher": _MEANS,
}


def method_rows() -> list[Row]:
    """One row for each registered method that needs no recording, ``linear`` first."""
    rows = [
        Row(name, method.summary, {"method": name}, TRIED.get(name, ()))
        for name, method in METHODS.items()
        if "moments" not in method.supplied
    ]
    weaker = Row(
        "linear x 0.8", "linear, with the result at strength 0.8", {"method": "linear", "scale": 0.8}
    )
    return [*rows[:1], weaker, *rows[1:]]


# on training A, 60 steps kept less of styles on five prompts; with one prompt the difference is within noise
_STEPS: Options = {"steps": 90}

LEARNED = (
    Row("calibrated", "from a recording, without training", learned="calibrated"),
    Row("distilled", "trained on a recording; one prompt per LoRA", _STEPS, learned="distilled"),
    Row("distilled, styles on five prompts", "each style recorded with five subjects", _STEPS,
        learned="distilled", style_prompts=5),
    Row("distilled at rank 8", "one prompt per LoRA, trained at rank 8", _STEPS | {"rank": 8},
        learned="distilled"),
)  # fmt: skip


def rows_of(titles: Sequence[str] = (), chosen: Path = CHOSEN) -> list[Row]:
    """Return all rows, or those named, at the settings that were chosen.

    Raises:
        ParameterError: for a title that no row has.
    """
    rows = [*method_rows(), *LEARNED]
    for title in titles:
        if title not in {row.title for row in rows}:
            raise ParameterError(f"no row is called {title!r}; there are {', '.join(r.title for r in rows)}")
    settings = json.loads(chosen.read_text(encoding="utf-8")) if chosen.exists() else {}
    return [
        replace(row, options=row.options | settings.get(row.title, next(iter(row.tried), {})))
        for row in rows
        if not titles or row.title in titles
    ]


def merge_row(row: Row, loras: Sequence[Lora]) -> Merged:
    """Merge by a row that needs no recording."""
    return merge(loras, **({"seed": MASK_SEED} | row.options))
