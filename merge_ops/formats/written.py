"""What a file was just written from, compared with the file tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import MergeError
from .header import Entry, torch_dtype

_BLOCK = 1 << 20  # bytes that are compared at a time: they stay in the processor's cache


@dataclass(frozen=True, slots=True)
class Written:
    """The tensors and the metadata that a file must hold, and nothing else."""

    tensors: Mapping[str, Tensor]  # contiguous, on the CPU
    metadata: Mapping[str, str]

    def compare(self, file: BufferedReader, entries: list[Entry], metadata: Mapping[str, str]) -> None:
        """Read a file from the end of its header on, and require every bit.

        ``entries`` and ``metadata`` are those of its header, the entries in the order of their data.

        Raises:
            MergeError: if anything differs, is missing, or was not written.
        """
        if {entry.name for entry in entries} != set(self.tensors):
            raise MergeError(
                f"the file read back has {len(entries)} tensors instead of {len(self.tensors)}, or others; "
                "nothing was saved"
            )
        if metadata != self.metadata:
            raise differs("the metadata")
        block = np.empty(_BLOCK, np.uint8)
        for entry in entries:
            tensor = self.tensors[entry.name]
            alike = torch_dtype(entry) == tensor.dtype and entry.shape == tuple(tensor.shape)
            if not alike or not _holds(file, raw_bytes(tensor), block):
                raise differs(entry.name)


def differs(name: str) -> MergeError:
    """Return the error of a part of a file that is not what was written."""
    return MergeError(f"{name} read back differs from what was merged; nothing was saved")


def raw_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor on the CPU, ``(bytes,)``; a view if it is contiguous."""
    raw: NDArray[np.uint8] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw


def _holds(file: BufferedReader, expected: NDArray[np.uint8], block: NDArray[np.uint8]) -> bool:
    """True if the next bytes of a file are the expected ones."""
    for start in range(0, len(expected), len(block)):
        part = expected[start : start + len(block)]
        read = block[: len(part)]
        if file.readinto(read.data) != len(part) or not np.array_equal(read, part):
            return False
    return True
