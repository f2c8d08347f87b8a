"""``python -m benchmarks [--quick] [--only NAME …] [--json FILE] [--plot FILE.png] [--markdown]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

import torch

from . import memory
from .cores import core_rows
from .end_to_end import end_to_end_rows
from .large import large_rows
from .others import kohya_rows, mergekit_rows
from .patching import patching_rows
from .peft_rows import factor_rows, svd_rows
from .plot import draw
from .rows import FACTOR_TYPES, MEMORY_GOAL, SVD_TYPES, Row
from .scaling import Series, scaling_series
from .sdxl import Layer, attention_layers, stratified
from .strength import strength_rows
from .table import as_json, machine, machine_line, markdown_table, text_table

TYPES = (*FACTOR_TYPES, *SVD_TYPES)
SECTIONS = ("memory", "mergekit", "kohya", "end_to_end", "strength", "cores", "large", "comfyui", "scaling")
COUNTS = (2, 4)
SMALL = 640 * 2048  # the largest shape that --quick gives to the slow baselines
QUICK_MEMORY = ("ties", "svd")


def main() -> int:
    """Run the chosen measurements and print the table."""
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = attention_layers()
    rows, series, begin = [], [], time.perf_counter()
    for line in _run(options, layers):
        (series if isinstance(line, Series) else rows).append(line)
        sys.stderr.write(f"{time.perf_counter() - begin:6.0f} s  {_progress(line)}\n")
    result = machine()
    if options.json:
        options.json.write_text(json.dumps(as_json(rows, series, result, options.quick), indent=1) + "\n")
    if options.plot:
        part = "some of the 722 layers" if options.quick else "722 layers"
        draw(rows, series, machine_line(result), options.plot, part)
    if options.quick:
        sys.stdout.write(
            "quick run: some of the layers and shapes, few repeats; run it in full for reliable figures\n"
        )
    sys.stdout.write(markdown_table(rows, result) if options.markdown else text_table(rows, series, result))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes: fewer layers and shapes")
    parser.add_argument(
        "--only", nargs="+", choices=(*TYPES, *SECTIONS), metavar="NAME", default=[*TYPES, *SECTIONS],
        help=f"any of {', '.join((*TYPES, *SECTIONS))}; the memory of types is measured only with 'memory'",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw a picture")
    parser.add_argument("--markdown", action="store_true", help="print the README's table instead")
    return parser.parse_args()


def _run(options: argparse.Namespace, layers: list[Layer]) -> Iterator[Row | Series]:
    quick, only = options.quick, options.only
    largest, chosen = (SMALL, stratified(layers, 20)) if quick else (None, layers)
    for n in COUNTS:
        types = [t for t in TYPES if t in only]
        for rows in (
            factor_rows(chosen, n, types, 3, largest),
            svd_rows(layers, n, types, 1 if quick else 3, largest),
        ):
            for row in rows:
                if quick and row.method in FACTOR_TYPES:
                    row.add_note(f"{len(chosen)} layers")
                if "memory" in only and not (quick and (n > 2 or row.method not in QUICK_MEMORY)):
                    _measure_memory(row, layers, quick)
                yield row
    if "mergekit" in only:
        for n in COUNTS[: 1 if quick else None]:
            yield from mergekit_rows(layers, n, 1 if quick else 3, largest)
    if "kohya" in only:
        for n in COUNTS[: 1 if quick else None]:
            yield from kohya_rows(layers, n, 1, largest)
    if "end_to_end" in only:
        yield from end_to_end_rows(layers, 1 if quick else 5)
    if "strength" in only:
        small = [layer for layer in layers if layer.rows * layer.columns <= SMALL]
        yield from strength_rows(small[:8] if quick else stratified(layers, 20), 3 if quick else 5)
    if "cores" in only:
        yield from core_rows(stratified(layers, 20), 1 if quick else 5)
    if "large" in only:
        yield from large_rows(1 if quick else 3, quick)
    if "comfyui" in only:
        yield from patching_rows(quick)
    if "scaling" in only:
        yield from scaling_series(quick)


def _measure_memory(row: Row, layers: list[Layer], quick: bool) -> None:
    """Measure the peak memory and the real time of a merge of all 722 layers."""
    measured = memory.measure(layers, row.method, row.n)
    row.peak_mb = measured["peak_mb"]
    if row.method in FACTOR_TYPES and not quick:
        row.their_peak_mb = memory.measure(layers, row.method, row.n, peft=True)["peak_mb"]
    row.add_note(f"all {len(layers)} layers in full: {measured['seconds']:.2f} s")
    if row.peak_mb is not None and row.peak_mb > MEMORY_GOAL:
        row.add_note(f"more than {MEMORY_GOAL} MB")


def _progress(line: Row | Series) -> str:
    if isinstance(line, Series):
        return f"scaling: {line.method} by {line.axis}, slope {line.slope:.2f}"
    ratio = "no figure" if line.ratio is None else f"{line.ratio:.2f}x"
    return f"{line.against}: {line.method} N={line.n}, {ratio}"


if __name__ == "__main__":
    raise SystemExit(main())
