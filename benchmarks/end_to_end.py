"""Merging two files, and inspecting them, beside loading and saving alone: CPU seconds and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from safetensors.torch import load_file, save_file

import merge_ops

from .clock import cpu_seconds
from .inputs import make_loras, multipliers, write_kohya
from .rows import Row
from .sdxl import Layer, text_layers

GOAL = 1.8
INSPECT_GOAL = 2.0
PEAK_GOAL = 1100  # MB
_RANK = 32
ROOT = Path(__file__).parents[1]
_FLOOR = """
import sys
from safetensors.torch import load_file, save_file
a, b, out = sys.argv[1:]
a, b = load_file(a), load_file(b)
save_file({f"{i}.{key}": tensor for i, part in enumerate((a, b)) for key, tensor in part.items()}, out)
"""
# A new process counts as its own peak what its parent has in memory: hence a small one between the two.
_MEASURED = """
import json, os, subprocess, sys, time
begin = time.perf_counter()
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
figures = usage.ru_utime + usage.ru_stime, time.perf_counter() - begin, usage.ru_maxrss * 1024 / 1e6
print(json.dumps([os.waitstatus_to_exitcode(status), *figures]))
"""
_LOAD = """
import sys
from safetensors.torch import load_file
for path in sys.argv[1:]:
    for tensor in load_file(path).values():
        tensor.clone()
"""


def end_to_end_rows(layers: list[Layer], repeats: int) -> Iterator[Row]:
    """Time a linear ``lora-alloy merge`` of two LoRAs: as a process, and without starting the interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        loras = make_loras([*layers, *text_layers()], 2, _RANK)
        files = [write_kohya(lora, place / f"{lora.name}.safetensors") for lora in loras]
        del loras
        size = files[0].stat().st_size / 1e6
        row = _merging(files, place / "out.safetensors", repeats)
        row.add_note(
            f"two files of {size:.0f} MB, one of {(place / 'out.safetensors').stat().st_size / 1e6:.0f}"
        )
        yield row
        yield _in_process(files, place / "out.safetensors", repeats)
        yield _inspecting(files, repeats)


def _merging(files: list[Path], out: Path, repeats: int) -> Row:
    row = Row("load + save", "lora-alloy merge", 2, goal=GOAL, at_most=True)
    inputs = [f"{path}:{weight}" for path, weight in zip(files, multipliers(2), strict=True)]
    merging = ["-m", "merge_ops", "merge", *inputs, "--method", "linear", "-o", str(out)]
    copying = ["-c", _FLOOR, *map(str, files), str(out)]
    peak = _compare(row, copying, merging, out, repeats)
    if peak > PEAK_GOAL:
        row.add_note(f"more than {PEAK_GOAL} MB")
    return row


def _inspecting(files: list[Path], repeats: int) -> Row:
    row = Row("load", "lora-alloy inspect", 2, goal=INSPECT_GOAL, at_most=True)
    paths = list(map(str, files))
    _compare(row, ["-c", _LOAD, *paths], ["-m", "merge_ops", "inspect", *paths], None, repeats)
    return row


def _compare(row: Row, theirs: list[str], ours: list[str], out: Path | None, repeats: int) -> float:
    """Run both sides alternately, fill in the row, and return the peak memory of ours in MB."""
    runs: list[tuple[_Run, _Run]] = []
    for _ in range(repeats):
        pair = []
        for arguments in (theirs, ours):
            if out is not None:
                out.unlink(missing_ok=True)
            pair.append(_process(arguments))
        runs.append((pair[0], pair[1]))
    row.theirs, row.ours = (median(pair[side].cpu for pair in runs) for side in (0, 1))
    row.ratio = median(b.cpu / a.cpu for a, b in runs)
    walls = [median(pair[side].wall for pair in runs) for side in (0, 1)]
    peaks = [max(pair[side].peak for pair in runs) for side in (0, 1)]
    row.add_note("including the start of Python and torch; wall {:.1f} and {:.1f} s".format(*walls))
    row.add_note("peak {:.0f} and {:.0f} MB in all".format(*peaks))
    return peaks[1]


class _Run(NamedTuple):
    """CPU and wall seconds of a process, and its peak memory in MB."""

    cpu: float
    wall: float
    peak: float


def _process(arguments: list[str]) -> _Run:
    """Run Python and measure it; Linux only, which counts the memory in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    code, *figures = json.loads(done.stdout.splitlines()[-1])
    if code:
        raise RuntimeError(f"{arguments[:3]} failed: {done.stderr[-2000:]}")
    return _Run(*figures)


def _in_process(files: list[Path], out: Path, repeats: int) -> Row:
    row = Row("load + save", "load, merge, save", 2, goal=GOAL, at_most=True)

    def copy() -> None:
        parts = [load_file(path) for path in files]
        save_file({f"{i}.{k}": t for i, part in enumerate(parts) for k, t in part.items()}, out)

    def merge() -> None:
        loras = [merge_ops.load(path) for path in files]
        merge_ops.save(merge_ops.merge(loras, multipliers(2), "linear"), out, overwrite=True)

    pairs: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for _ in range(repeats):
        pairs.append((_both(copy), _both(merge)))
    row.theirs, row.ours = median(a[0] for a, _ in pairs), median(b[0] for _, b in pairs)
    row.ratio = median(b[0] / a[0] for a, b in pairs)
    walls = median(a[1] for a, _ in pairs), median(b[1] for _, b in pairs)
    row.add_note("in one process; wall {:.2f} and {:.2f} s".format(*walls))
    return row


def _both(call: Callable[[], None]) -> tuple[float, float]:
    begin = time.perf_counter()
    cpu = cpu_seconds(call)
    return cpu, time.perf_counter() - begin
