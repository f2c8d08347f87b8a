"""Merging two files into one, compared with loading and saving alone: command line and library."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from safetensors.torch import load_file, save_file

import merge_ops

from .clock import cpu_seconds
from .inputs import make_loras, multipliers, write_kohya
from .rows import Row
from .sdxl import Layer

GOAL = 2.0
ROOT = Path(__file__).parents[1]
_FLOOR = """
import sys
from safetensors.torch import load_file, save_file
a, b, out = sys.argv[1:]
a, b = load_file(a), load_file(b)
save_file({f"{i}.{key}": tensor for i, part in enumerate((a, b)) for key, tensor in part.items()}, out)
"""


def end_to_end_rows(layers: list[Layer], repeats: int) -> Iterator[Row]:
    """Time a linear ``lora-alloy merge`` of two LoRAs: as a process, and without starting the interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = [write_kohya(lora, place / f"{lora.name}.safetensors") for lora in make_loras(layers, 2)]
        size = files[0].stat().st_size / 1e6
        row = _processes(files, place / "out.safetensors", repeats)
        row.add_note(
            f"two files of {size:.0f} MB, one of {(place / 'out.safetensors').stat().st_size / 1e6:.0f}"
        )
        yield row
        yield _in_process(files, place / "out.safetensors", repeats)


def _processes(files: list[Path], out: Path, repeats: int) -> Row:
    row = Row("load + save", "lora-alloy merge", 2, goal=GOAL, at_most=True)
    inputs = [f"{path}:{weight}" for path, weight in zip(files, multipliers(2), strict=True)]
    merging = ["-m", "merge_ops", "merge", *inputs, "--method", "linear", "-o", str(out)]
    copying = ["-c", _FLOOR, *map(str, files), str(out)]
    theirs, ours = [], []
    for _ in range(repeats):
        for arguments, times in ((copying, theirs), (merging, ours)):
            out.unlink(missing_ok=True)
            times.append(_process(arguments))
    row.theirs, row.ours = median(cpu for cpu, _ in theirs), median(cpu for cpu, _ in ours)
    row.ratio = median(b / a for (a, _), (b, _) in zip(theirs, ours, strict=True))
    walls = [median(wall for _, wall in times) for times in (theirs, ours)]
    row.add_note("including the start of Python and torch; wall {:.1f} and {:.1f} s".format(*walls))
    return row


def _process(arguments: list[str]) -> tuple[float, float]:
    """Return the CPU and wall seconds of a Python process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    wall = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"{arguments[:3]} failed: {done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


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
