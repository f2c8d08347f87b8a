"""The inputs of a call as plain data: nested containers of tensors, numbers and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# a tensor, None, bool, int, float or str; or a tuple, list or dict of such values
Tree = Any
_ATOMS = (bool, int, float, str, type(None))
DROPPED = object()  # stands for a value that is not plain data


def plain(value: Any) -> Tree:
    """Return the plain data in a value: callables, modules and other objects are left out of containers."""
    kept = _plain(value)
    return None if kept is DROPPED else kept


def map_tensors(change: Callable[[Tensor], Any], value: Tree) -> Tree:
    """Return the same containers with ``change`` applied to every tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(change, each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([map_tensors(change, each) for each in value])
    return value


def tensors_in(value: Tree) -> list[Tensor]:
    """Return every tensor, in the order in which ``map_tensors`` visits them."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def shape_of(value: Tree) -> Any:
    """Return what two trees must share for their tensors to be put together: everything but the values."""
    if isinstance(value, Tensor):
        return tuple(value.shape[1:]), value.dtype
    if isinstance(value, dict):
        return tuple((key, shape_of(each)) for key, each in value.items())
    if isinstance(value, tuple | list):
        return type(value).__name__, tuple(shape_of(each) for each in value)
    return value


def to_cpu(tensor: Tensor) -> Tensor:
    """Return a copy in CPU memory that autograd may use, also of a tensor made in inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, *_ATOMS)):
        return value
    if isinstance(value, dict):
        pairs = {key: _plain(each) for key, each in value.items() if isinstance(key, _ATOMS)}
        return {key: each for key, each in pairs.items() if each is not DROPPED}
    if isinstance(value, tuple | list):
        items = [_plain(each) for each in value]
        # the place of an argument counts, so one that is dropped leaves None behind
        return (tuple if isinstance(value, tuple) else list)([None if e is DROPPED else e for e in items])
    return DROPPED
