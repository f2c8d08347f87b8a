"""The results as a text table, as the README's table and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .rows import MEMORY_GOAL, Row
from .scaling import Series

PACKAGES = ("torch", "peft", "numpy", "diffusers", "safetensors", "mergekit")
HEADINGS = (
    "method",
    "N",
    "theirs s",
    "ours s",
    "ratio",
    "goal",
    "error ours",
    "error theirs",
    "peak MB",
    "note",
)

_ERRORS = [
    "errors: of the worst layer, against float64. Truncated types: excess of the Frobenius error over the",
    "  best rank 16. Random types in factor space: error of the kept fraction and its deviation from chance.",
    "  Others: relative difference of up @ down. In ties and magnitude_prune many float16 entries tie at the",
    "  threshold; the reference keeps all of them, PEFT's topk only some",
]


def machine() -> dict[str, Any]:
    """Return processor, threads, versions and date."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: number for name in PACKAGES if (number := _version(name))},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    place = Path("/proc/cpuinfo")
    lines = place.read_text().splitlines() if place.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine_line(machine: dict[str, Any]) -> str:
    """Return the machine in one line."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *PACKAGES) if name in machine)
    return f"{machine['processor']}, {machine['threads']} thread, {versions}, {machine['date']}"


def _seconds(value: float | None, extrapolated: bool = False) -> str:
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}" + (" x" if extrapolated else "")


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    return (
        f"{row.ratio:.0f}x"
        if row.ratio >= 100
        else f"{row.ratio:.1f}x"
        if row.ratio >= 10
        else f"{row.ratio:.2f}x"
    )


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    met = {True: " ok", False: " MISSED", None: ""}[row.met]
    return f"{'<=' if row.at_most else '>='} {row.goal:g}x{met}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _peak(row: Row) -> str:
    if row.peak_mb is None:
        return ""
    mark = " MISSED" if row.peak_mb > MEMORY_GOAL else ""
    theirs = "" if row.their_peak_mb is None else f" ({row.their_peak_mb:.0f})"
    return f"{row.peak_mb:.0f}{theirs}{mark}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        str(row.n),
        _seconds(row.theirs, row.extrapolated),
        _seconds(row.ours, row.extrapolated),
        _ratio(row),
        _goal(row),
        _error(row.error),
        _error(row.their_error),
        _peak(row),
        row.note,
    )


def text_table(rows: Sequence[Row], series: Sequence[Series], found: dict[str, Any]) -> str:
    """Return the whole result as plain text."""
    cells = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *cells, strict=True)]
    out = [machine_line(found)]
    against = ""
    for row, line in zip(rows, cells, strict=True):
        if row.against != against:
            against = row.against
            out += ["", f"compared with {against}", _line(HEADINGS, widths), "-" * min(sum(widths) + 18, 150)]
        out.append(_line(line, widths))
    out += ["", "seconds: CPU time of one thread; x: one layer of each shape, times its number of layers"]
    out += _ERRORS
    out += [f"peak: MB beyond the inputs, PEFT's in brackets, goal <= {MEMORY_GOAL}"]
    if series:
        out += ["", "slope of time on logarithmic axes (1 is linear)"]
        out += [f"{s.method:14} {s.axis:8} {s.slope:5.2f}   {_points(s)}" for s in series]
    return "\n".join(out) + "\n"


def _points(series: Series) -> str:
    return "  ".join(f"{x}: {seconds * 1e3:.1f} ms" for x, seconds in series.points)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = {0, len(cells) - 1}
    parts = [
        c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(parts).rstrip()


def markdown_table(rows: Sequence[Row], found: dict[str, Any]) -> str:
    """Return the table of the README: PEFT's types, with each N side by side."""
    chosen = [row for row in rows if row.against == "PEFT" and row.ratio is not None]
    counts = sorted({row.n for row in chosen})
    heads = [f"{head}, N={n}" for n in counts for head in ("PEFT", "here", "times faster")]
    out = ["| `combination_type` | " + " | ".join([*heads, "error", "peak MB"]) + " |"]
    out.append("| --- |" + " ---: |" * (len(heads) + 2))
    for method in dict.fromkeys(row.method for row in chosen):
        by_n = {row.n: row for row in chosen if row.method == method}
        cells = []
        for n in counts:
            row = by_n.get(n)
            given = (_seconds(row.theirs), _seconds(row.ours)) if row else ("", "")
            mark = " (x)" if row and row.extrapolated else ""
            cells += [f"{value} s{mark}" if value else "" for value in given]
            cells.append(_ratio(row).removesuffix("x") if row else "")
        errors = [row.error for row in by_n.values() if row.error is not None]
        peaks = [row.peak_mb for row in by_n.values() if row.peak_mb is not None]
        cells += [_error(max(errors, default=None)), f"{max(peaks):.0f}" if peaks else ""]
        out.append(f"| `{method}` | " + " | ".join(cells) + " |")
    out += ["", f"{machine_line(found)}. CPU seconds of one thread."]
    return "\n".join(out) + "\n"


def as_json(
    rows: Sequence[Row], series: Sequence[Series], found: dict[str, Any], quick: bool
) -> dict[str, Any]:
    """Return everything as plain values for JSON."""
    return {
        "machine": found,
        "quick": quick,
        "rows": [{**asdict(row), "met": row.met} for row in rows],
        "scaling": [{**asdict(s), "slope": s.slope} for s in series],
    }
