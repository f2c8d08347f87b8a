"""The peak memory of one merge beyond its inputs, in a separate process: ``python -m benchmarks.memory``.

Linux only: the kernel's high-water mark of resident memory is reset once the inputs are loaded. The result
stays alive; factors made from it on request are dropped layer by layer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from merge_ops import Lora
from merge_ops.merging import merge

from .inputs import DENSITY, RANK, make_loras, multipliers
from .sdxl import Layer

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(layers: list[Layer], combination_type: str, n: int, peft: bool = False) -> dict[str, Any]:
    """Return ``peak_mb`` (None if it cannot be measured) and ``seconds`` of a merge of all ``layers``."""
    job = {"layers": layers, "type": combination_type, "n": n, "peft": peft}
    command = [sys.executable, "-m", "benchmarks.memory"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, input=json.dumps(job), cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the memory measurement failed: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _megabytes(field: str) -> float:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e6


def _reset() -> float | None:
    """Reset the high-water mark and return the resident memory; None if that is impossible."""
    try:
        RESET.write_text("5")
        return _megabytes("VmRSS")
    except OSError:
        return None


def _run(loras: list[Lora], n: int, combination_type: str, side: Any) -> Any:
    if side is not None:
        return side.merge(combination_type, multipliers(n))
    merged = merge(loras, multipliers(n), combination_type=combination_type, density=DENSITY, svd_rank=RANK)
    for name in merged.layers:
        merged.factors(name)
    return merged


def main() -> None:
    """Read a job from stdin, and print the measurement."""
    torch.set_num_threads(1)
    job = json.load(sys.stdin)
    layers = [Layer(*layer) for layer in job["layers"]]
    loras = make_loras(layers, job["n"])
    warm = make_loras([Layer("warm.to_q", 96, 128)], job["n"])  # lazily loaded code does not count as input
    side = None
    if job["peft"]:
        from .peft_side import PeftSide  # slow to import

        PeftSide(warm).merge(job["type"], multipliers(job["n"]))
        side = PeftSide(loras)
    else:
        _run(warm, job["n"], job["type"], None)
    before, begin = _reset(), time.process_time()
    result = _run(loras, job["n"], job["type"], side)
    seconds = time.process_time() - begin
    peak = None if before is None else _megabytes("VmHWM") - before
    del result
    sys.stdout.write(json.dumps({"peak_mb": peak, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
