"""Capturing the calls of a host's modules while something else runs the model."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import MergeError
from .host import Host
from .plain import map_tensors
from .samples import Role, Sample, split


class Store:
    """A fair choice of samples within a budget: every sample of a role has the same chance to be kept.

    ``budget`` is in bytes, for each module and role. The choice depends on the seed and on the order of the
    calls alone. Equal tensors are kept once.
    """

    def __init__(self, budget: int, seed: int) -> None:
        self._budget = budget
        self._seed = seed
        self._heaps: dict[tuple[str, Role], list[tuple[float, int, Sample]]] = {}
        self._draws: dict[tuple[str, Role], torch.Generator] = {}
        self._seen: dict[tuple[str, Role], int] = {}
        self._sizes: dict[tuple[str, Role], int] = {}
        self._known: dict[bytes, Tensor] = {}

    def add(self, sample: Sample) -> None:
        """Keep a sample, or drop it or others where the budget is full."""
        key = sample.module, sample.role
        heap = self._heaps.setdefault(key, [])
        if key not in self._draws:
            self._draws[key] = torch.Generator().manual_seed(_number(f"{self._seed} {key}"))
        place = self._seen[key] = self._seen.get(key, 0) + 1
        luck = float(torch.rand((), dtype=torch.float64, generator=self._draws[key]))
        heapq.heappush(heap, (luck, place, sample))
        self._sizes[key] = self._sizes.get(key, 0) + sample.size
        while len(heap) > 1 and self._sizes[key] > self._budget:
            self._sizes[key] -= heapq.heappop(heap)[2].size

    def count(self, role: Role) -> int:
        """Return how many samples of a role are kept."""
        return sum(len(heap) for (_, kept), heap in self._heaps.items() if kept == role)

    def chosen(self, held_out: float) -> list[Sample]:
        """Return the samples in the order of their calls, a share of each role marked as held out.

        Two samples of a role or more have one held out at least, and one to learn from.
        """
        samples: list[Sample] = []
        for heap in self._heaps.values():
            count = min(max(1, round(held_out * len(heap))), len(heap) - 1) if held_out else 0
            apart = {place for _, place, _ in sorted(heap)[:count]}
            for _, place, sample in sorted(heap, key=lambda entry: entry[1]):
                args, kwargs = map_tensors(self._once, (sample.args, sample.kwargs))
                samples.append(replace(sample, args=args, kwargs=kwargs, is_held_out=place in apart))
        return samples

    def _once(self, tensor: Tensor) -> Tensor:
        """The first of all equal tensors: the same text is part of many calls."""
        return self._known.setdefault(content(tensor), tensor)


@contextmanager
def captured(host: Host, role: Role, store: Store) -> Iterator[None]:
    """Record every call of the host's modules made inside the context."""

    def hook(name: str) -> Any:
        def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = host.inputs(name, args, kwargs)
            counted = host.output(name, output, args, kwargs)
            if not bool(torch.isfinite(counted).all()):
                raise MergeError(
                    f"{name} answered with NaN or infinity while it was recorded; a LoRA is damaged or far "
                    "too strong, or the model needs a dtype with a larger range"
                )
            for sample in split(name, role, *given, counted):
                store.add(sample)

        return keep

    hooks = [
        module.register_forward_hook(hook(name), with_kwargs=True) for name, module in host.modules.items()
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def content(tensor: Tensor) -> bytes:
    """Return a digest of a tensor's dtype, shape and entries."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
