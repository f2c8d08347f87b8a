"""What happens when a device has no memory left: small tiles, then the CPU, and a line. Needs no ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_CPU = torch.device("cpu")
Tiles = Iterator[tuple[int, Tensor]]  # (first row, rows of a matrix)


def with_less_memory(compute: Callable[[torch.device, bool], T], device: torch.device) -> tuple[T, str]:
    """Return what ``compute(device, sparing)`` returns, and a line if it did not work at the first attempt.

    Out of memory, the next attempt is ``sparing``, which means small tiles; the last one is on the CPU.
    """
    if device.type == "cpu":
        return compute(device, False), ""
    attempts = (
        (device, False, ""),
        (device, True, f"There was little memory on {device}; the merge was computed in small tiles."),
        (_CPU, False, f"There was not enough memory on {device}; the merge was computed on the CPU."),
    )
    for where, sparing, line in attempts:
        # what failed is left behind before the next attempt, so that its tensors are free by then
        try:
            result = compute(where, sparing)
        except torch.OutOfMemoryError:
            if where == _CPU:
                raise
            continue
        if line:
            logging.warning(line)
        return result, line
    raise AssertionError("the last attempt returns or raises")


def tiles_or_on_cpu(make: Callable[[torch.device], Tiles], device: torch.device) -> Tiles:
    """``make(device)``; if that runs out of memory half way, the remaining rows come from the CPU."""
    done = 0
    try:
        for start, tile in make(device):
            yield start, tile
            done = start + tile.shape[0]
        return
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    logging.warning(f"There was not enough memory on {device}; a weight is patched by way of the CPU.")
    for start, tile in make(_CPU):
        if start + tile.shape[0] > done:
            first = max(start, done)
            yield first, tile[first - start :].to(device)
