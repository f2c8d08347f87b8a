"""``make quality``, or ``python -m benchmarks.quality [--quick] [--resume] [--only TITLE …] [--part …]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

from ..table import machine
from .collect import Plan, Scores
from .goals import RANK_8, verdicts
from .perform import default_workers, perform
from .plan import QUICK_SETS, SCORED_ON, SETS
from .plot import draw
from .rows import BASELINE, Row, rows_of
from .score import FULL, QUICK
from .table import markdown, text
from .work import Store, alone_units, work_through

OUTPUT = Path("quality-output")


def main() -> int:
    """Measure, print the table and the goals, and write the files."""
    options = _options()
    begin = time.perf_counter()
    data: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    if "drawings" in options.part:
        plan = plan_of(options.quick, rows_of(_with_baseline(options.only)))
        data["drawings"] = measure(
            plan, Store(options.output / "scores.jsonl", options.resume), options.workers
        )
    if "text" in options.part:
        from .text.measure import measure_texts

        data["text"] = measure_texts(rows_of(_with_baseline(options.only)), options.quick)
    data["goals"] = verdicts(data)
    data["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    write(data, options.output)
    sys.stdout.write(text(data))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sets, rows and drawings, training B only")
    parser.add_argument(
        "--resume", action="store_true", help="keep what an earlier run in the same folder has scored"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="TITLE", default=[], help="rows, such as ties or distilled"
    )
    parser.add_argument("--part", nargs="+", choices=("drawings", "text"), default=["drawings", "text"])
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes of one thread each")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="FOLDER")
    return parser.parse_args()


def _with_baseline(titles: list[str]) -> list[str]:
    return [BASELINE, *titles] if titles and BASELINE not in titles else titles


def plan_of(quick: bool, rows: list[Row]) -> Plan:
    """The plan of a full or a quick run, which is done without the row that adds the least."""
    if quick:
        rows = [row for row in rows if row.title != RANK_8]
        return Plan(QUICK_SETS, SCORED_ON[:1], tuple(rows), QUICK)
    return Plan(SETS, SCORED_ON, tuple(rows), FULL)


def measure(plan: Plan, store: Store, workers: int) -> dict[str, Any]:
    """Score every row on every set."""
    units = [*alone_units(plan.sets, plan.trainings, plan.amount), *plan.units(plan.rows)]
    work_through(units, store, perform, workers, _say)
    about = {name: getattr(plan.amount, name) for name in ("own", "others", "pairs", "kept")}
    sets = {s.title: s.group for s in plan.sets}
    return {"drawn": about, "trainings": list(plan.trainings), "sets": sets, **Scores(plan, store).figures()}


def write(data: dict[str, Any], folder: Path) -> None:
    """Write ``table.json``, ``table.md`` and ``plot.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown(data), encoding="utf-8")
    if "drawings" in data:
        draw(data, folder / "plot.png")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
