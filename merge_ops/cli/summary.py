"""Printing what a merge does, for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import in_options, print_json, say, table
from .ranks import print_sizes

if TYPE_CHECKING:
    from ..lora import Lora
    from ..merging.merged import Merged
    from ..saving import SizePlan


def print_summary(merged: Merged) -> None:
    """Print what was merged, what was not and why, and the warnings."""
    from ..analysis.repetition import advice_on_sum
    from ..merging.report import LEFT_OUT, block_lines

    counts = merged.outline.counts()
    say(f"{_title(merged)}: " + ", ".join(f"{count} layers {status}" for status, count in counts.items()))
    for line in merged.outline.layers:
        if line.status != "merged" and not line.reason.startswith(LEFT_OUT):
            say(f"  {line.status}: {line.name} ({in_options(line.reason)})")
    for text in block_lines(merged.loras, merged.request.blocks):
        say(f"  {text}")
    for line_on_added in merged.added_after:
        say(f"  {line_on_added}")
    for warning in merged.outline.warnings:
        say(f"  warning: {in_options(warning)}")
    for sentence in advice_on_sum(merged):
        say(f"  {sentence}")


def print_plan(merged: Merged, as_json: bool, plan: SizePlan | None = None) -> None:
    """Print the result of a dry run: one line per merged layer, then the summary."""
    if as_json:
        print_json({"merge": merged.report.to_dict(), **({} if plan is None else {"sizes": plan.to_dict()})})
        return
    chosen = {} if plan is None else plan.ranks
    rows: list[list[str]] = [["layer", "LoRAs", "ranks", "result", "sign conflict"]]
    for line in merged.report.layers:
        if line.status == "merged":
            conflict = "" if line.sign_conflict is None else f"{line.sign_conflict:.1%}"
            full = line.reason or "full rank"
            rank = chosen.get(line.name, line.rank_out)
            result = full if rank is None else f"rank {rank}"
            rows.append([line.name, str(line.loras), "+".join(map(str, line.ranks_in)), result, conflict])
    say(table(rows))
    if plan is not None:
        print_sizes(plan)
    print_summary(merged)
    say("dry run: nothing was written")


def _title(merged: Merged) -> str:
    how: Any = merged.request.method_name
    names: list[Lora] = merged.loras
    return f"{how} of " + " + ".join(
        f"{w:g} x {lora.name}{f' ({blocks})' if blocks else ''}"
        for lora, w, blocks in zip(names, merged.request.weights, merged.request.blocks, strict=True)
    )
