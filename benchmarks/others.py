"""Other baselines, if available: mergekit (if it can be imported) and kohya (``KOHYA_SCRIPTS``)."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge_ops import Lora
from merge_ops.merging import merge

from . import accuracy, reference
from .clock import alternate
from .inputs import DENSITY, RANK, make_loras, multipliers, write_kohya
from .peft_rows import run_ours
from .rows import Row
from .sdxl import Layer, one_per_shape

MERGEKIT_GOALS = {"ties": 60.0, "dare_linear": 6.0, "dare_ties": 6.0}
KOHYA_GOAL = 300.0


def mergekit_rows(layers: list[Layer], n: int, repeats: int, largest: int | None = None) -> Iterator[Row]:
    """Time the methods of mergekit on ready-made full deltas; ours starts from the factors."""
    rows = {method: Row("mergekit", method, n, 0.0, 0.0, goal=g) for method, g in MERGEKIT_GOALS.items()}
    try:
        registry = importlib.import_module("mergekit.merge_methods.registry")
        group_of = importlib.import_module("mergekit.merge_methods.base").TensorGroup.from_tensors
    except (ImportError, AttributeError):
        yield from _absent(list(rows.values()), "mergekit 0.1.5 or newer is not installed")
        return
    for layer, count in one_per_shape(layers):
        if largest is not None and layer.rows * layer.columns > largest:
            continue
        loras = make_loras([layer], n)
        group = group_of([torch.zeros(layer.shape), *_deltas(loras)], base_index=0)
        for method, row in rows.items():
            theirs = _mergekit_call(registry.get(method), group, n)
            _add(row, theirs, lambda m=method, a=loras: _our_delta(a, m), repeats, count)
    yield from _finished(list(rows.values()), largest)


def _deltas(loras: list[Lora]) -> list[Tensor]:
    return [layer.delta() for lora in loras for layer in lora.layers.values()]


def _our_delta(loras: list[Lora], method: str) -> Tensor:
    (name,) = loras[0].layers
    return merge(loras, multipliers(len(loras)), method=method, density=DENSITY).delta(name)


def _mergekit_call(method: Any, group: Any, n: int) -> Callable[[], Any]:
    own = {
        "weight": dict(enumerate(multipliers(n), start=1)),  # entry 0 is the base
        "density": dict.fromkeys(range(1, n + 1), DENSITY),
    }
    return lambda: method.merge_group(
        group,
        int8_mask=False,
        normalize=method.default_normalize,
        rescale=method.default_rescale,
        **{"lambda": 1.0},
        **own,
    )


def kohya_rows(layers: list[Layer], n: int, repeats: int, largest: int | None = None) -> Iterator[Row]:
    """Time ``svd`` against kohya's ``svd_merge_lora.py``, whose time includes reading a small file."""
    row = Row("kohya", "svd", n, 0.0, 0.0, goal=KOHYA_GOAL)
    script = _kohya_script()
    if isinstance(script, str):
        yield from _absent([row], script)
        return
    errors = []
    for layer, count in one_per_shape(layers):
        if largest is not None and layer.rows * layer.columns > largest:
            continue
        loras = make_loras([layer], n)
        with tempfile.TemporaryDirectory() as folder:
            files = [str(write_kohya(x, Path(folder) / f"{x.name}.safetensors")) for x in loras]
            ratios = multipliers(n)
            _add(
                row,
                lambda f=files, r=ratios: script.merge_lora_models(f, r, [], RANK, RANK, None, torch.float32),
                lambda a=loras: run_ours(a, "svd"),
                repeats,
                count,
            )
        (name,) = loras[0].layers
        delta = reference.delta("svd", [lora.layers[name] for lora in loras], ratios)
        errors.append(accuracy.excess(run_ours(loras, "svd")[0], delta, accuracy.least_error(delta)))
    row.error = max(errors)
    row.add_note("kohya clamps its factors at the 0.99 quantile, ours does not")
    yield from _finished([row], largest)


def _kohya_script() -> Any:
    """Return the module, or the reason why it is missing."""
    root = os.environ.get("KOHYA_SCRIPTS")
    if not root:
        return "KOHYA_SCRIPTS is not set to a checkout of sd-scripts"
    before = list(sys.path)
    sys.path[:0] = [root, str(Path(root) / "networks")]
    try:
        return importlib.import_module("svd_merge_lora")
    except ImportError as error:
        return f"sd-scripts cannot be imported: {error}"
    finally:
        sys.path[:] = before


def _add(row: Row, theirs: Callable[[], Any], ours: Callable[[], Any], repeats: int, count: int) -> None:
    ours()
    timing = alternate(theirs, ours, repeats, at_least=0.05)
    row.theirs = (row.theirs or 0.0) + count * timing.theirs
    row.ours = (row.ours or 0.0) + count * timing.ours


def _absent(rows: list[Row], reason: str) -> Iterator[Row]:
    for row in rows:
        row.theirs = row.ours = None
        row.add_note(reason)
        yield row


def _finished(rows: list[Row], largest: int | None) -> Iterator[Row]:
    for row in rows:
        if row.theirs and row.ours:
            row.ratio = row.theirs / row.ours
        row.extrapolated = True
        if largest is not None:
            row.add_note("smaller shapes only")
        yield row
