"""Choose each method's settings on training A: ``python -m benchmarks.quality.choose [TITLE ...]``.

Every setting that a row tries (``rows.TRIED``) merges four sets of training A; the one that keeps most of
the own skills, on average over the sets, is written to ``chosen.json``. Scores come from other trainings.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

from .collect import Plan, Scores
from .perform import default_workers, perform
from .plan import CHOSEN_ON, QUICK_SETS, LoraSet
from .rows import CHOSEN, LEARNED, Options, Row, method_rows
from .score import Amount
from .work import Store, alone_units, work_through

AMOUNT = Amount(own=32, others=1, pairs=1, kept=1)  # only the own skills decide
SETS = tuple(s for s in QUICK_SETS if not s.twins)


def numbered(row: Row) -> list[Row]:
    """The row at each setting, under titles of their own."""
    return [
        Row(f"{row.title} #{number}", row.clause, each.options, (), each.learned, each.style_prompts)
        for number, each in enumerate(row.alternatives())
    ]


def scored(
    rows: Sequence[Row], store: Store, workers: int, sets: tuple[LoraSet, ...] = SETS, amount: Amount = AMOUNT
) -> dict[str, float]:
    """Return the mean share of the own skills that each row keeps on training A."""
    plan = Plan(sets, CHOSEN_ON, tuple(rows), amount)
    units = [*alone_units(plan.sets, plan.trainings, plan.amount), *plan.units(plan.rows)]
    work_through(units, store, perform, workers, lambda line: sys.stderr.write(line + "\n"))
    scores = Scores(plan, store).scores
    return {
        title: sum(score.own for score in found.values()) / len(found)
        for title, found in scores.items()
        if found
    }


def choose(
    rows: Sequence[Row], store: Store, workers: int, sets: tuple[LoraSet, ...] = SETS
) -> dict[str, tuple[Options, float]]:
    """Return the best setting of every row that tries several, and its score."""
    tried = [row for row in rows if len(row.tried) > 1]
    means = scored([each for row in tried for each in numbered(row)], store, workers, sets)
    best = {}
    for row in tried:
        number, options = max(
            enumerate(row.tried), key=lambda pair: means.get(f"{row.title} #{pair[0]}", float("-inf"))
        )
        best[row.title] = options, means.get(f"{row.title} #{number}", float("nan"))
    return best


def main() -> None:
    """Choose, print and write."""
    wanted = sys.argv[1:]
    rows = [row for row in (*method_rows(), *LEARNED) if not wanted or row.title in wanted]
    store = Store(Path("quality-output") / "choose.jsonl", resume=True)
    found = choose(rows, store, default_workers())
    chosen = json.loads(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.exists() else {}
    for title, (options, mean) in found.items():
        print(f"{title}: {options}, {mean:.3f}")
        chosen[title] = options
    CHOSEN.write_text(json.dumps(dict(sorted(chosen.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
