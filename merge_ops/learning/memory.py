"""Training within the memory that there is: smaller pieces of a batch first, then recomputed activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import MergeError
from .host import Host
from .student import Trainable


class Effort:
    """Runs a step; where memory runs out, tries again with less, and goes on with that.

    The steps down are: half as many samples at a time, until it is one; then activations of repeated blocks
    are computed again in the backward pass instead of kept. The result of a step is the same, to rounding.
    """

    def __init__(self, host: Host, name: str, places: Mapping[str, Trainable], batch: int) -> None:
        self._device = host.device(name)
        self._blocks = _blocks(host.modules[name], places)
        self._size = batch
        self._forwards: list[tuple[nn.Module, Any]] = []
        self.notes: tuple[str, ...] = ()

    def attempt(self, run: Callable[[int], float]) -> float:
        """Return ``run(samples at a time)``.

        Raises:
            MergeError: if there is not enough memory for one sample.
        """
        while True:
            try:
                return run(self._size)
            except torch.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            self._use_less(reason)  # outside the handler, which would keep the step's tensors alive

    def _use_less(self, reason: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._size > 1:
            self._size //= 2
            note = f"out of memory: {self._size} samples at a time"
        elif self._blocks and not self._forwards:
            self._recompute()
            note = "out of memory: activations are computed again in the backward pass"
        else:
            raise MergeError(
                "there is not enough memory to train with one sample at a time; record at a smaller size, or "
                f"train at a lower rank ({reason})"
            )
        self.notes = (*self.notes, note)

    def _recompute(self) -> None:
        for block in self._blocks:
            own: Any = block.forward
            self._forwards.append((block, block.__dict__.get("forward")))

            def forward(*args: Any, own: Any = own, **kwargs: Any) -> Any:
                return checkpoint(own, *args, use_reentrant=False, **kwargs)

            object.__setattr__(block, "forward", forward)

    def __enter__(self) -> Effort:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for block, own in self._forwards:
            if own is None:
                object.__delattr__(block, "forward")
            else:
                object.__setattr__(block, "forward", own)
        self._forwards = []


def _blocks(module: nn.Module, places: Mapping[str, Trainable]) -> list[nn.Module]:
    """The outermost elements of module lists that hold a trained module: a transformer's or UNet's blocks."""
    trained = {id(place.site.module) for place in places.values()}
    blocks: list[nn.Module] = []

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if not isinstance(parent, nn.ModuleList):
                visit(child)
            elif any(id(part) in trained for part in child.modules()):
                blocks.append(child)

    visit(module)
    return blocks
