"""Linear algebra that gives the same bits for every number of threads.

A matrix product or a decomposition that is shared out among threads adds its terms in another order, and so
ends in other last bits, for each number of threads. Here each call runs on one thread, and what is large is
shared out in blocks whose size does not depend on the number of threads.

Products with a short inner side, such as ``up @ down`` of one LoRA, need none of this: they are cut between
rows and columns of the result only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

_SOLVED_TOGETHER = 32  # rows of a matrix
_ROWS = 256  # of one block of a product
_SHARED = 1 << 25  # multiplications from which on sharing out takes less time than it costs

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the linear algebra of the calling thread, and of no other, run on one thread.

    Also a decorator. This needs Intel's MKL, which torch for x86 contains; elsewhere it does nothing, and
    last bits may depend on the number of threads.
    """
    limit = _limit_of_mkl()
    if limit is None:
        yield
        return
    before = limit(1)
    try:
        yield
    finally:
        limit(before)


@contextmanager
def one_core() -> Iterator[None]:
    """Let everything that torch computes in the calling thread, and in no other, run on one core.

    What is elementwise has the same bits on any number of cores: this is for threads that share out work
    among themselves. It needs OpenMP, which torch is built with; elsewhere only linear algebra obeys.
    """
    limit, before = _limit_of_openmp(), torch.get_num_threads()  # asking also settles torch's own setting
    with one_thread():
        if limit is not None:
            limit(1)
        try:
            yield
        finally:
            if limit is not None:
                limit(before)


@cache
def _limit_of_mkl() -> Callable[[int], int] | None:
    """MKL's switch for the calling thread, which returns its last position; None if there is none."""
    # the name in small and capital letters is C's; the others are Fortran's, and take pointers
    return _function("MKL_Set_Num_Threads_Local", "libtorch_cpu.so", "torch_cpu.dll", "libtorch_cpu.dylib")


@cache
def _limit_of_openmp() -> Callable[[int], int] | None:
    """OpenMP's switch for the calling thread; None if torch has been built without."""
    return _function("omp_set_num_threads", "libtorch_cpu.so", "libiomp5md.dll", "libomp.dylib")


def _function(name: str, *libraries: str) -> Callable[[int], int] | None:
    """A C function of one integer from the first of torch's libraries that is there, or None."""
    folder = Path(torch.__file__).parent / "lib"
    for library in libraries:
        if (folder / library).is_file():
            function = getattr(ctypes.CDLL(str(folder / library)), name, None)
            if function is not None:
                function.argtypes = [ctypes.c_int]
            return function
    return None


def in_order(work: Callable[[Tensor], T], blocks: Iterable[Tensor], cost: int) -> list[T]:
    """Return the result of each block, in order; several threads share them out if ``cost`` is large.

    ``cost`` is the number of multiplications of all blocks together.
    """
    listed: Sequence[Tensor] = list(blocks)
    threads = min(torch.get_num_threads(), len(listed))

    def alone(block: Tensor) -> T:
        with one_thread():
            return work(block)

    if threads < 2 or cost < _SHARED or _limit_of_mkl() is None or listed[0].device.type != "cpu":
        return [alone(block) for block in listed]
    from concurrent.futures import (
        ThreadPoolExecutor,  # imports logging, which takes as long as half of --help
    )

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(alone, listed))


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left (rows, k) @ right (k, columns)``, with the same bits for every number of threads."""
    if left.device.type != "cpu":
        return left @ right
    blocks, cost = torch.split(left, _ROWS), left.numel() * right.shape[1]
    if left.stride(0) != 1:
        return torch.cat(in_order(lambda block: block @ right, blocks, cost))
    turned = right.T  # rows that are columns in memory are read faster from the right
    return torch.cat(in_order(lambda block: turned @ block.T, blocks, cost), dim=1).T


def divided(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ inverse(right)`` for square matrices ``(..., k, k)``.

    Large ones are solved for one at a time: with several at once and more than one thread, torch 2.13 with
    MKL 2024.2 ends in "Pivots given to lu_solve must all be greater or equal to 1".
    """
    with one_thread():
        if right.shape[-1] <= _SOLVED_TOGETHER or right.ndim == 2 or right.device.type != "cpu":
            whole: Tensor = torch.linalg.solve(right, left, left=False)
            return whole
        pairs = zip(left.flatten(0, -3), right.flatten(0, -3), strict=True)
        return torch.stack([torch.linalg.solve(b, a, left=False) for a, b in pairs]).view_as(right)


def total(values: Tensor) -> float:
    """Return the sum of all entries in float64; numpy adds them in one order, on one thread."""
    return float(values.detach().to("cpu", torch.float64).numpy().sum())
