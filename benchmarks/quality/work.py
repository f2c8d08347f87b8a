"""The work of a run: units that processes share, and a file of what is done."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import KEPT, KNOWN_DIGITS, OWN, STYLE_SUBJECTS, LoraSet, sources
from .rows import Row
from .score import Amount, drawings
from .studio import SCORE_NOISE, Drawings, Shares

Key = str


@dataclass(frozen=True, slots=True)
class Unit:
    """What one process does at a time: one LoRA alone, or some rows of one set; no set is the base."""

    training: str
    amount: Amount
    lora: str = ""
    lora_set: LoraSet | None = None
    rows: tuple[Row, ...] = ()

    def keys(self) -> list[Key]:
        """What its results are filed under, one for each row."""
        about: dict[str, Any] = {"training": self.training, "noise": SCORE_NOISE}
        about |= {f"drawn {name}": getattr(self.amount, name) for name in Amount.__slots__}
        if self.lora_set is None:
            return [json.dumps(about | {"alone": self.lora})]
        about["set"] = self.lora_set.title
        return [
            json.dumps(
                about | {"row": row.title, "subjects": row.style_prompts, "options": row.options},
                sort_keys=True,
            )
            for row in self.rows
        ]


@dataclass(frozen=True, slots=True)
class Result:
    """What was drawn right, and what it took."""

    shares: Shares
    seconds: float  # CPU seconds of the merge, without recording and drawing
    recording: float = 0.0  # CPU seconds of recording


class Store:
    """Results by key, one a line in a file, so that a run that was stopped can go on."""

    def __init__(self, file: Path, resume: bool) -> None:
        self.file = file
        self.results: dict[Key, Result] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            file.write_text("", encoding="utf-8")
        elif file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self.results[entry["key"]] = _read(entry)

    def add(self, key: Key, result: Result) -> None:
        """File a result."""
        self.results[key] = result
        shares = [[*prompt, value] for prompt, value in result.shares.items()]
        entry = {"key": key, "shares": shares, "seconds": round(result.seconds, 3),
                 "recording": round(result.recording, 3)}  # fmt: skip
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")


def _read(entry: dict[str, Any]) -> Result:
    shares = {(digit, style): value for digit, style, value in entry["shares"]}
    return Result(shares, entry["seconds"], entry["recording"])


def alone_units(sets: Iterable[LoraSet], trainings: Sequence[str], amount: Amount) -> list[Unit]:
    """Every LoRA that the sets need, alone."""
    needed = dict.fromkeys(source for t in trainings for s in sets for source in sources(s, t))
    return [Unit(training, amount, lora=name) for training, name in needed]


def alone_drawings(name: str, amount: Amount) -> Drawings:
    """Its own prompt, a style's other subjects, and what the base can draw."""
    wanted: Drawings = dict.fromkeys(KEPT, amount.kept)
    if name in STYLE_SUBJECTS:
        wanted |= dict.fromkeys(((digit, name) for digit in KNOWN_DIGITS), amount.others)
    wanted[OWN[name]] = amount.own
    return wanted


def set_drawings(unit: Unit) -> Drawings:
    """The prompts of a unit's set."""
    assert unit.lora_set is not None
    return drawings(unit.lora_set, unit.amount)


def work_through(
    units: Sequence[Unit],
    store: Store,
    do: Callable[[Unit], list[Result]],
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Do every unit that the store does not have, in ``workers`` processes of one thread each."""
    todo = [left for unit in units if (left := _missing(unit, store))]
    begin = time.perf_counter()
    for done, (unit, results) in enumerate(_results(todo, do, workers), 1):
        for key, result in zip(unit.keys(), results, strict=True):
            store.add(key, result)
        what = unit.lora_set.title if unit.lora_set else f"{unit.lora} alone"
        say(f"{time.perf_counter() - begin:6.0f} s  {done:3} of {len(todo)}  {unit.training}: {what}")


def _missing(unit: Unit, store: Store) -> Unit | None:
    """The unit without what is done, or None if nothing is left."""
    missing = [key not in store.results for key in unit.keys()]
    if unit.lora_set is None:
        return unit if missing[0] else None
    rows = tuple(row for row, is_missing in zip(unit.rows, missing, strict=True) if is_missing)
    return Unit(unit.training, unit.amount, lora_set=unit.lora_set, rows=rows) if rows else None


def _results(
    todo: Sequence[Unit], do: Callable[[Unit], list[Result]], workers: int
) -> Iterator[tuple[Unit, list[Result]]]:
    if workers == 1:
        for unit in todo:
            yield unit, do(unit)
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the processes when they import torch
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap_unordered(_Numbered(do), list(todo))


@dataclass(frozen=True)
class _Numbered:
    """Gives a unit back with its results, since they come in any order."""

    do: Callable[[Unit], list[Result]]

    def __call__(self, unit: Unit) -> tuple[Unit, list[Result]]:
        return unit, self.do(unit)
