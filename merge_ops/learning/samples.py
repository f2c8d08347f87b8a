"""Samples of a recording: single entries of the batches that a module was called with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .plain import Tree, map_tensors, shape_of, tensors_in, to_cpu

KEEP, TOGETHER = "keep", "together"
Role = int | str  # the place of a LoRA in the recording, KEEP or TOGETHER


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One entry of a batch: a module's inputs, and the answer to learn, in CPU memory.

    Every tensor keeps its batch dimension. ``distance`` is the squared distance of the base model's answer,
    known for the held-out samples.
    """

    module: str
    role: Role
    args: Tree
    kwargs: Tree
    output: Tensor  # (1, ...)
    is_held_out: bool = False
    distance: float | None = None

    @property
    def size(self) -> int:
        """The bytes of its tensors."""
        return sum(each.nbytes for each in (*tensors_in((self.args, self.kwargs)), self.output))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples of one shape, put together on a device."""

    module: str
    samples: tuple[Sample, ...]
    args: Tree
    kwargs: Tree
    output: Tensor  # (batch, ...)


def split(module: str, role: Role, args: Tree, kwargs: Tree, output: Tensor) -> Iterator[Sample]:
    """Yield one sample for each entry of the batch of a call.

    A tensor whose first dimension is that of the output is taken to hold one entry each; every other tensor
    belongs to all of them.
    """
    count = len(output)

    def entry(index: int, tensor: Tensor) -> Tensor:
        own = tensor.ndim > 0 and len(tensor) == count
        return to_cpu(tensor[index : index + 1] if own else tensor)

    for index in range(count):
        own_args, own_kwargs = map_tensors(partial(entry, index), (args, kwargs))
        yield Sample(module, role, own_args, own_kwargs, to_cpu(output[index : index + 1]))


def batches(samples: Iterable[Sample], device: torch.device, size: int) -> Iterator[Batch]:
    """Yield the samples in batches of at most ``size``; only those of one shape are put together."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(_signature(sample), []).append(sample)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield _together(group[start : start + size], device)


def _signature(sample: Sample) -> Any:
    """What samples of one batch share; a tensor without a batch dimension must be the same for all."""
    lone = tuple(t.item() for t in tensors_in((sample.args, sample.kwargs)) if t.ndim == 0)
    wide = tuple(id(t) for t in tensors_in((sample.args, sample.kwargs)) if t.ndim and len(t) != 1)
    return sample.module, shape_of((sample.args, sample.kwargs)).__repr__(), lone, wide


def _together(group: list[Sample], device: torch.device) -> Batch:
    columns = zip(*(tensors_in((sample.args, sample.kwargs)) for sample in group), strict=True)
    joined = iter([_join(column, device) for column in columns])
    args, kwargs = map_tensors(lambda _: next(joined), (group[0].args, group[0].kwargs))
    output = _join([sample.output for sample in group], device)
    return Batch(group[0].module, tuple(group), args, kwargs, output)


def _join(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    first, *others = tensors
    if first.ndim == 0 or len(first) != 1:
        return first.to(device)
    return torch.cat([first, *others]).to(device)
