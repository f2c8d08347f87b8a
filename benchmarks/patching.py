"""Running ``comfyui_patch.py`` with ComfyUI's own Python, if there is a ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .rows import Row

ROOT = Path(__file__).parents[1]
GOAL = 1.5


def patching_rows(quick: bool) -> Iterator[Row]:
    """Time a lazily merged patch against the stock patches of chained Load LoRA nodes."""
    folder = Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")
    python = next((p for p in (folder / ".venv/bin/python", folder / "venv/bin/python") if p.exists()), None)
    if python is None:
        yield Row("ComfyUI", "patch", 2, note="no ComfyUI with a virtual environment; set COMFYUI_DIR")
        return
    command = [str(python), str(ROOT / "benchmarks" / "comfyui_patch.py"), str(folder), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "comfyui"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + ["--quick"] * quick,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"method"')]
    if done.returncode or not lines:
        yield Row("ComfyUI", "patch", 2, note=f"failed: {done.stderr.strip()[-300:]}")
        return
    for line in lines:
        row = Row("ComfyUI", f"{line['method']} {line['rows']}x{line['columns']}", line["n"], at_most=True)
        row.theirs, row.ours, row.ratio, row.goal = line["stock"], line["ours"], line["ratio"], GOAL
        row.note = f"thresholds recomputed: {line['recomputed'] or 'no'}"
        yield row
