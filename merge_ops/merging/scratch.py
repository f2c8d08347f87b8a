"""Memory that is used again from layer to layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Scratch:
    """One float32 buffer, as large as the largest matrix so far, in which layer after layer is merged.

    A matrix from it lasts until the next one is asked for. New memory for each costs as much as the merge.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def matrix(self, rows: int, columns: int, device: torch.device) -> Tensor:
        if self._buffer.numel() < rows * columns or self._buffer.device != device:
            self._buffer = _empty(rows * columns, device)
        return self._buffer[: rows * columns].view(rows, columns)


def _empty(entries: int, device: torch.device) -> Tensor:
    """Float32 memory. numpy asks the system for huge pages, and the first touch of those costs far less."""
    if device.type == "cpu":
        return torch.from_numpy(np.empty(entries, np.float32))
    return torch.empty(entries, device=device)
