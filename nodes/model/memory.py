"""Going on when a device runs out of memory: in small tiles, then on the CPU. Needs no ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_CPU = torch.device("cpu")
Tiles = Iterator[tuple[int, Tensor]]  # (first row, rows of a matrix)


def compute_with_less_memory(
    compute: Callable[[torch.device, bool], T], device: torch.device
) -> tuple[T, str]:
    """Compute on the device; if its memory runs out, in small tiles, and then on the CPU.

    ``compute(device, sparing)`` uses small tiles where ``sparing`` is true. Returns its result, and a line
    about what was done instead, or "".

    Raises:
        torch.OutOfMemoryError: if the CPU has too little memory as well.
    """
    if device.type == "cpu":
        return compute(device, False), ""
    attempts = (
        (device, False, ""),
        (device, True, f"There was little memory on {device}; the merge was computed in small tiles."),
        (_CPU, False, f"There was not enough memory on {device}; the merge was computed on the CPU."),
    )
    for where, sparing, line in attempts:
        # the except clause ends before the next attempt, which frees the tensors of the failed one
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


def make_tiles(make: Callable[[torch.device], Tiles], device: torch.device) -> Tiles:
    """Yield ``make(device)``; if memory runs out half way, the remaining rows are computed on the CPU."""
    done = 0
    try:
        for start, tile in make(device):
            yield start, tile
            done = start + tile.shape[0]
        return
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    logging.warning(f"There was not enough memory on {device}; the rest of a weight is computed on the CPU.")
    for start, tile in make(_CPU):
        if start + tile.shape[0] > done:
            first = max(start, done)
            yield first, tile[first - start :].to(device)
