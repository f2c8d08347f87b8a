"""Layers merged on all cores: one layer on each thread, with the bits of one thread.

Linear algebra, elementwise operations and selection do without Python's lock, so that threads work side by
side. Each has a ``Scratch`` of its own and works on one layer at a time, so that memory grows by one delta
with each thread; ``_ENTRIES`` bounds them all together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import torch

from ..steady import one_core
from .scratch import Scratch

_ENTRIES = 1 << 28  # float32 values that the threads together may hold of deltas: 1 GiB

T = TypeVar("T")
R = TypeVar("R")


def on_all_cores(
    work: Callable[[T, Scratch], R], items: Sequence[T], largest: int, scratch: Scratch
) -> Generator[R, None, None]:
    """Yield ``work(item, scratch)`` for each item, in order, computed on as many threads as torch uses.

    ``largest`` is the number of entries of the largest delta. Threads follow the caller's inference mode and
    gradient mode. Where the iterator is closed early, or an item raises, what has not begun is left undone.
    """
    threads = min(torch.get_num_threads(), len(items), max(1, _ENTRIES // max(largest, 1)))
    if threads < 2:
        yield from (work(item, scratch) for item in items)
        return
    own, inference, grad = threading.local(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def begin() -> None:
        own.scratch = Scratch(scratch.sparing)

    def alone(item: T) -> R:
        with ExitStack() as modes:
            modes.enter_context(one_core())
            modes.enter_context(torch.inference_mode(inference))
            modes.enter_context(torch.set_grad_enabled(grad))
            return work(item, own.scratch)

    pool = ThreadPoolExecutor(threads, "lora-alloy", begin)
    try:
        yield from pool.map(alone, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
