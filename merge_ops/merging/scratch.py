"""The memory that a merge works in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Entries of one tile of one LoRA. On the CPU the buffers of a tile should stay in the cache, and the calls
# should still be few; elsewhere launches cost more than memory.
_TILE_ON_CPU = 1 << 17
_TILE_ELSEWHERE = 1 << 22
_SMALL = 1 << 21  # entries of a matrix whose threshold is found in one piece
_ROWS = 64
_LINE = 16  # entries of float32 in a line of the cache


class Scratch:
    """One float32 buffer that is reused from layer to layer, and the size of the tiles a merge works in.

    The buffer grows to the largest matrix so far; a matrix from it lasts until the next one is requested.
    Allocating a new one for each layer costs as much as the merge itself.

    With ``sparing`` the tiles are small on every device, and thresholds are found on the CPU: for devices
    that have run out of memory.
    """

    def __init__(self, sparing: bool = False) -> None:
        self.sparing = sparing
        self._buffer = torch.empty(0)

    def matrix(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Return an uninitialised float32 matrix ``(rows, columns)`` on the device."""
        if self._buffer.numel() < rows * columns or self._buffer.device != device:
            self._buffer = _empty(rows * columns, device)
        return self._buffer[: rows * columns].view(rows, columns)

    def room(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Return float32 memory for a small matrix as a whole, else for one tile."""
        tile = max(self.tile_height(columns, device) * columns, _SMALL)
        return self.matrix(1, min(rows * columns, tile), device)

    def tile_height(self, columns: int, device: torch.device) -> int:
        """Return the number of rows of a tile: a multiple of what suits matrix products, if there is room."""
        small = self.sparing or device.type == "cpu"
        height = (_TILE_ON_CPU if small else _TILE_ELSEWHERE) // columns
        return height // _ROWS * _ROWS or max(1, height)


def _empty(entries: int, device: torch.device) -> Tensor:
    """Float32 memory. numpy asks the system for huge pages, and the first touch of those costs far less.

    It begins where a line of the cache does, as torch's own memory: matrix products may depend on that.
    """
    if device.type == "cpu":
        memory = torch.from_numpy(np.empty(entries + _LINE, np.float32))
        return memory[-(memory.data_ptr() // 4) % _LINE :][:entries]
    return torch.empty(entries, device=device)
