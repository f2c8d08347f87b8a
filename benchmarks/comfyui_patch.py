"""The cost of a lazily merged patch inside ComfyUI, compared with the patches of chained Load LoRA nodes.

Run it with ComfyUI's own Python: ``python benchmarks/comfyui_patch.py [FOLDER] [--quick] [--json]``, where
FOLDER is ComfyUI's, by default COMFYUI_DIR. It imports nothing from this folder: the pack is loaded as in
ComfyUI, and a ``nodes`` or ``merge_ops`` on the path would shadow those of ComfyUI and the pack.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

PACK = Path(__file__).resolve().parents[1]
SHAPES = ((640, 640), (1280, 1280), (1280, 2048), (1280, 5120), (5120, 640), (10240, 1280))
MULTIPLIERS = (0.8, 0.6, -0.5, 0.4)
RANK, SCALE, DENSITY, GOAL = 16, 0.5, 0.5, 1.5
NAME = "alloy_pack"


def load_pack() -> None:
    """Load the pack as ComfyUI does, under its own module name."""
    place = PACK / "__init__.py"
    spec = importlib.util.spec_from_file_location(NAME, place, submodule_search_locations=[str(PACK)])
    if spec is None or spec.loader is None:
        raise RuntimeError("the pack cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())


def make_factors(rows: int, columns: int, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Make random ``(up, down)`` in float16, with a decaying spectrum."""
    generator = torch.Generator().manual_seed(rows + columns)
    fall = torch.arange(1, RANK + 1) ** -0.5
    return [
        (
            (torch.randn(rows, RANK, generator=generator) * fall * 0.05).half(),
            (torch.randn(RANK, columns, generator=generator) * 0.05).half(),
        )
        for _ in range(n)
    ]


def stock_patches(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[Any, ...]]:
    """Return the patches that a chain of Load LoRA nodes adds to a weight."""
    adapter = importlib.import_module("comfy.weight_adapter.lora").LoRAAdapter
    pairs = zip(MULTIPLIERS, factors, strict=False)
    return [
        (w, adapter(set(), (up, down, SCALE * RANK, None, None, None)), 1.0, None, None)
        for w, (up, down) in pairs
    ]


def our_patches(factors: list[tuple[torch.Tensor, torch.Tensor]], method: str) -> list[tuple[Any, ...]]:
    """Return the patch that Load & Merge LoRAs adds to a weight."""
    merge_ops = importlib.import_module(f"{NAME}.merge_ops")
    loras = [
        merge_ops.Lora(f"lora{i}", {"unet.layer": merge_ops.LowRank(up, down, SCALE)})
        for i, (up, down) in enumerate(factors)
    ]
    weights = list(MULTIPLIERS[: len(loras)])
    merged = merge_ops.merge(loras, weights, method=method, density=DENSITY)
    adapter = importlib.import_module(f"{NAME}.nodes.model.patches.patch").MergedAdapter.of(
        merged.layer("unet.layer"), whole=False
    )
    return [(1.0, adapter, 1.0, None, None)]


@contextmanager
def counted() -> Iterator[list[str]]:
    """Record the pack's threshold functions that are called inside the block, wherever they are imported."""
    calls: list[str] = []
    replaced = []

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls.append(name)
            return function(*args, **more)

        return call

    for module in [m for n, m in sys.modules.items() if n.startswith(f"{NAME}.merge_ops")]:
        for name, value in list(vars(module).items()):
            if "threshold" in name and callable(value):
                replaced.append((module, name, value))
                setattr(module, name, counting(name, value))
    try:
        yield calls
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def time_patches(patches: list[tuple[Any, ...]], base: torch.Tensor) -> float:
    """Return the CPU seconds of ``calculate_weight``, without the cast of the weight, alike for both."""
    calculate = importlib.import_module("comfy.lora").calculate_weight
    weight = base.float()
    begin = time.process_time()
    calculate(patches, weight, "layer.weight")
    return time.process_time() - begin


def compare(rows: int, columns: int, n: int, method: str, repeats: int) -> dict[str, Any]:
    """Measure one line of the result."""
    base = torch.randn(rows, columns).half()
    factors = make_factors(rows, columns, n)
    stock = stock_patches(factors)
    with counted() as merging:
        ours = our_patches(factors, method)
    time_patches(stock, base)
    with counted() as calls:
        time_patches(ours, base)
    # no call at all, though the method needs thresholds, means that the functions have been renamed
    unseen = method == "ties" and not merging
    pairs = [(time_patches(stock, base), time_patches(ours, base)) for _ in range(repeats)]
    return {
        "method": method,
        "rows": rows,
        "columns": columns,
        "n": n,
        "stock": median(a for a, _ in pairs),
        "ours": median(b for _, b in pairs),
        "ratio": median(b / a for a, b in pairs),
        "recomputed": "unknown" if unseen else ", ".join(sorted(set(calls))),
    }


def main() -> None:
    """Compare and print one line per shape, number of LoRAs and method."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
    quick, as_json = "--quick" in sys.argv, "--json" in sys.argv
    folder = Path(arguments[0] if arguments else os.environ["COMFYUI_DIR"]).resolve()
    os.chdir(folder)
    sys.path[0] = str(folder)  # instead of this folder, which Python put there
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        sys.argv = ["main.py", "--cpu", "--base-directory", base]
        importlib.import_module("comfy.options").enable_args_parsing()
        load_pack()
    for rows, columns in SHAPES[:2] if quick else SHAPES:
        for n in (2, 4):
            for method in ("ties", "dare_ties"):
                with torch.inference_mode():
                    line = compare(rows, columns, n, method, 5 if quick else 9)
                text = (
                    f"{method:10} {rows:>5} x {columns:<5} N={n}  stock {line['stock'] * 1e3:7.1f} ms  "
                    f"ours {line['ours'] * 1e3:7.1f} ms  ratio {line['ratio']:5.2f} (goal <= {GOAL})  "
                    f"thresholds recomputed: {line['recomputed'] or 'no'}"
                )
                sys.stdout.write((json.dumps(line) if as_json else text) + "\n")


if __name__ == "__main__":
    main()
