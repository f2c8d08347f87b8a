"""The scores as plain data, as Markdown and as a text table."""

from __future__ import annotations

from typing import Any

from .measure import Cells, Result
from .plan import LORAS, MERGES, Merge, label


def figures(result: Result) -> dict[str, Any]:
    """Return all scores as plain data: fractions of drawings with the right digit and style."""
    return {
        "seed": result.seed,
        "drawings": result.count,
        "base": _fractions(result.base),
        "alone": {name: _fractions(cells) for name, cells in result.alone.items()},
        "merges": {
            group.title: {
                "loras": list(group.loras),
                "methods": {
                    row.title: _fractions(result.merged[row.title, group.title]) for row in result.rows
                },
            }
            for group in MERGES
        },
    }


def markdown(result: Result) -> str:
    """Return one Markdown table per merge."""
    parts = [
        f"Percent of {result.count} drawings with the right digit in the right style; seed {result.seed}.",
    ]
    for group in MERGES:
        header, *body = _rows(result, group)
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
        parts.append(f"## {group.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def text(result: Result) -> str:
    """Return the same tables for a terminal."""
    parts = []
    for group in MERGES:
        rows = _rows(result, group)
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                word.ljust(size) if column == 0 else word.rjust(size)
                for column, (word, size) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        parts.append("\n".join([f"{group.title}: {', '.join(group.loras)}", *lines]))
    return "\n\n".join(parts)


def _rows(result: Result, group: Merge) -> list[list[str]]:
    """Return the header, the base, the LoRAs alone, and one row per method; cells are percentages."""
    alone: Cells = {LORAS[name][1]: result.alone[name][LORAS[name][1]] for name in group.loras}
    named: list[tuple[str, Cells | None]] = [("base model", result.base), ("each LoRA alone", alone)]
    named += [(row.title, result.merged[row.title, group.title]) for row in result.rows]
    body = [[title, *_percentages(cells, group)] for title, cells in named]
    return [["", *(label(prompt) for prompt in group.prompts), "mean"], *body]


def _percentages(cells: Cells | None, group: Merge) -> list[str]:
    if cells is None:
        return ["-"] * (len(group.prompts) + 1)
    known = [cells[prompt].right for prompt in group.prompts if prompt in cells]
    words = [f"{100 * cells[prompt].right:.0f}" if prompt in cells else "" for prompt in group.prompts]
    whole = f"{100 * sum(known) / len(known):.0f}" if len(known) == len(group.prompts) else ""
    return [*words, whole]


def _fractions(cells: Cells | None) -> dict[str, float] | None:
    if cells is None:
        return None
    return {label(prompt): round(cell.right, 4) for prompt, cell in cells.items()}
