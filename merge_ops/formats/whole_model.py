"""A whole model: its weights under the names that LoRAs give its layers, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layer import Layout

ReadRows = Callable[[int, int], Tensor]  # rows from the first to before the last, as numbers, without scale


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeight:
    """One weight of a model. ``layout`` is that of its layer, None where it is no layer.

    ``is_bare`` says that it is a parameter of its own, and neither ``.weight`` nor ``.bias`` of a module.

    ``open`` returns a function that reads some of its rows as floating-point numbers; a weight without
    dimensions has one row.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype  # as it is stored
    layout: Layout | None
    key: str  # what the keys of its layer begin with in a file, as the program of the model's names has it
    open: Callable[[], ReadRows]
    is_bare: bool = False


FindByNames = Callable[[Mapping[str, ModelWeight]], dict[str, ModelWeight]]


@dataclass(frozen=True, slots=True, eq=False)
class WholeModel:
    """The weights by canonical name; ``module.bias`` is a bias, and other names stand for ``.weight``.

    ``beside`` counts what is in the files and no weight that a LoRA changes: the VAE, EMA weights, buffers.
    ``find`` returns the weights that the model has by the names of weights of another, whose file may have
    another layout; None where the model has one layout only.
    """

    name: str
    weights: Mapping[str, ModelWeight]
    dialect: str  # of LoRAs that are made of it: ``kohya``, or ``peft`` for a language model
    sha256: Callable[[], str | None]
    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    find: FindByNames | None = None


def split_role(name: str) -> tuple[str, str]:
    """Return the module of a tensor and ``weight`` or ``bias``; a bare parameter has its whole name."""
    module, _, role = name.rpartition(".")
    return (module, role) if module and role in ("weight", "bias") else (name, "")


def layout_of(role: str, shape: tuple[int, ...]) -> Layout | None:
    """Return the layout of a layer; None for a tensor that is no layer of any."""
    if not shape or (role == "bias" and len(shape) > 1):
        return None
    if len(shape) == 1:
        return "vector"
    return "conv" if len(shape) > 2 else "linear"
