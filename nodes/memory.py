"""What happens when a device has no memory left: the CPU takes over, and says so. Needs no ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Tiles = Iterator[tuple[int, Tensor]]  # (first row, rows of a matrix)


def or_on_cpu(compute: Callable[[torch.device], T], device: torch.device) -> tuple[T, str]:
    """``compute(device)``, or ``compute(cpu)`` if that runs out of memory, and a line that says so."""
    try:
        return compute(device), ""
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    # outside the handler, so that the failed attempt's tensors are free by now
    line = f"There was not enough memory on {device}; the merge was computed on the CPU."
    logging.warning(line)
    return compute(torch.device("cpu")), line


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
    for start, tile in make(torch.device("cpu")):
        if start + tile.shape[0] > done:
            first = max(start, done)
            yield first, tile[first - start :].to(device)
