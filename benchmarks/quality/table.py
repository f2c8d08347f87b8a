"""The results as Markdown and as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..table import machine_line

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, what the figures are, and cells; the first line of cells are the heads of the columns."""

    heading: str
    about: str
    cells: list[list[str]]


def tables(data: Data) -> list[Table]:
    """Return every table of a run."""
    out = []
    if "drawings" in data:
        out += _drawing_tables(data["drawings"])
    if "text" in data:
        out.append(_text_table(data["text"]))
    if data["goals"]:
        out.append(_goal_table(data["goals"]))
    return out


def markdown(data: Data) -> str:
    """Return all tables as Markdown."""
    parts = []
    for table in tables(data):
        header, *body = table.cells
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
        drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {table.heading}\n\n{table.about}\n\n{drawn}")
    return "\n\n".join([*parts, _footer(data)]) + "\n"


def text(data: Data) -> str:
    """Return all tables for a terminal."""
    parts = []
    for table in tables(data):
        widths = [max(len(line[column]) for line in table.cells) for column in range(len(table.cells[0]))]
        lines = [
            "  ".join(
                word.ljust(size) if column == 0 else word.rjust(size)
                for column, (word, size) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table.cells
        ]
        parts.append("\n".join([table.heading, *lines]))
    return "\n\n".join([*parts, _footer(data)]) + "\n"


def _footer(data: Data) -> str:
    kind = "A quick run: fewer sets and drawings, one training. " if data["quick"] else ""
    return f"{kind}{data['minutes']} minutes on {machine_line(data['machine'])}."


def groups_of(drawings: Data) -> list[str]:
    """Return the groups of sets in the order of the plan."""
    return list(dict.fromkeys(drawings["sets"].values()))


def group_title(group: str) -> str:
    """Return ``N = 4`` or ``twins``."""
    return group if group == "twins" else f"N = {group}"


def _drawing_tables(drawings: Data) -> list[Table]:
    drawn, groups = drawings["drawn"], groups_of(drawings)
    count = {g: sum(found == g for found in drawings["sets"].values()) for g in groups}
    sets = ", ".join(f"{count[g]} of {group_title(g)}" for g in groups)
    trainings = " and ".join(drawings["trainings"])
    mixed = [g for g in groups if g != "twins"]
    return [
        _table(drawings, groups, "What merges keep of each LoRA's own skill",
               "As a share of the same LoRAs alone; in brackets the mean of the sets' worst LoRAs. Trainings "
               f"{trainings}; sets: {sets}; {drawn['own']} drawings a skill.", _own),
        _table(drawings, groups, "The same, as a difference to linear",
               "Paired over sets and trainings, plus or minus the standard error.", _difference),
        _table(drawings, groups, "Other subjects in a style",
               "Digits that the base knows, in each learned style, other than the one of the style's own "
               f"prompt; as a share of the same LoRAs alone, {drawn['others']} drawings a prompt.",
               _mean_of("others")),
        _table(drawings, mixed, "A learned digit in a learned style",
               "Share of the drawings that are right; no LoRA alone can draw them. "
               f"{drawn['pairs']} drawings a prompt, twice as many where there are only one or two.",
               _mean_of("pairs")),
        _table(drawings, groups, "What the base can draw",
               f"Share of the drawings that are right; {drawn['kept']} drawings of each of three prompts.",
               _mean_of("kept")),
        _table(drawings, groups, "CPU seconds of a merge", "With recording, where there is one.", _seconds),
    ]  # fmt: skip


def _table(
    drawings: Data, groups: Sequence[str], heading: str, about: str, cell: Callable[[Data], str]
) -> Table:
    lines = [["", *map(group_title, groups)]]
    for title, row in drawings["rows"].items():
        lines.append([title, *(cell(row["groups"][g]) if g in row["groups"] else "-" for g in groups)])
    return Table(heading, about, lines)


def _share(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{value:.2f}"


def _own(group: Data) -> str:
    return f"{_share(group['own']['mean'])} [{_share(group['worst']['mean'])}]"


def _difference(group: Data) -> str:
    found = group["own"]
    if found["difference"] is None:
        return "-"
    error = "" if found["error"] is None else f" ±{found['error']:.3f}".replace("0.", ".", 1)
    return f"{found['difference']:+.3f}".replace("0.", ".", 1) + error


def _mean_of(measure: str) -> Callable[[Data], str]:
    return lambda group: _share(group[measure]["mean"]) if measure in group else "-"


def _seconds(group: Data) -> str:
    return f"{group['seconds']:.1f}"


def _text_table(found: Data) -> Table:
    groups = list(found["tasks"])
    lines = [["", *(f"{n} tasks" for n in groups)]]
    for title, row in found["rows"].items():
        cells = [
            f"{100 * row[n]['kept']:.0f} [{100 * row[n]['worst']:.0f}]" if n in row else "-" for n in groups
        ]
        lines.append([title, *cells])
    about = (
        "Percent of what the LoRAs gain over the base, each on its own task, that a merge of all of them "
        f"keeps; in brackets the worst task. {found['texts']} test texts a task."
    )
    return Table("Sentence encoder", about, lines)


def _goal_table(goals: list[Data]) -> Table:
    lines = [["goal", "wanted", "found", ""]]
    for goal in goals:
        sign = "at most" if goal["at_most"] else "at least"
        verdict = "reached" if goal["reached"] else "missed"
        lines.append([goal["goal"], f"{sign} {goal['wanted']:g}", f"{goal['found']:g}", verdict])
    return Table("Goals", "Set before the run; one prompt per LoRA, strength 1.", lines)
