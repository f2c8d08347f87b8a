"""The scores as plain data, as Markdown and as a text table."""

from __future__ import annotations

from typing import Any

from .measure import Result, Scores
from .tasks import TASKS


def figures(result: Result) -> dict[str, Any]:
    """Return all scores as plain data: fractions of the test texts, and the share of the gains kept."""
    return {
        "seed": result.seed,
        "texts": result.count,
        "peft": result.peft,
        "base": _rounded(result.base),
        "alone": {name: _rounded(scores) for name, scores in result.alone.items()},
        "merged": {
            title: {**_rounded(scores), "kept": round(result.kept(scores), 4)}
            for title, scores in result.merged.items()
        },
        "distance_from_peft": {title: float(f"{far:.2g}") for title, far in result.agreement.items()},
    }


def markdown(result: Result) -> str:
    """Return the Markdown table, and below it an explanation."""
    header, *body = _rows(result)
    lines = [header, ["---", "---"] + ["---:"] * (len(header) - 2), *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{caption(result)}\n"


def text(result: Result) -> str:
    """Return the same table for a terminal."""
    rows = _rows(result)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            word.ljust(size) if column < 2 else word.rjust(size)
            for column, (word, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", caption(result)])


def caption(result: Result) -> str:
    """Return an explanation of the figures, and of which program computed which row."""
    lines = [
        f"Percent of {result.count} test texts that are nearest to the description of their label; "
        f"all three LoRAs merged at weight 1, seed {result.seed}.",
        "kept: the gain over the base, as a percentage of what the LoRAs gain, each on its own task.",
    ]
    if result.peft is None:
        lines.append("PEFT is not installed, so its rows are computed with merge_ops' combination_type.")
    else:
        far = max(result.agreement.values(), default=0.0)
        lines.append(
            f"PEFT {result.peft} computed its rows itself; the deltas of merge_ops' "
            f"combination_type differ by at most {far:.1g} of their norm (DARE aside)."
        )
    return "\n".join(lines)


def _rows(result: Result) -> list[list[str]]:
    """Return the header, the base, each LoRA alone, and one row per merge; cells are percentages."""
    named = [("base model", "no LoRA", result.base, "")]
    named += [(f"{name} alone", "one LoRA", scores, "") for name, scores in result.alone.items()]
    named += [
        (row.title, row.clause, scores, f"{100 * result.kept(scores):.0f}")
        for row in result.rows
        for scores in [result.merged[row.title]]
    ]
    body = [[title, clause, *_percentages(scores), kept] for title, clause, scores, kept in named]
    return [["", "", *TASKS, "mean", "kept"], *body]


def _percentages(scores: Scores) -> list[str]:
    mean = sum(scores.values()) / len(scores)
    return [f"{100 * value:.0f}" for value in (*(scores[task] for task in TASKS), mean)]


def _rounded(scores: Scores) -> Scores:
    return {task: round(value, 4) for task, value in scores.items()}
