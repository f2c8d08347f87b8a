"""The base model's part in a merge: adapters that need its weights, and weights that take their place."""

from __future__ import annotations

import os
from collections.abc import Container
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adapters import Bound, Trained
from ..errors import IncompatibleLoraError
from ..formats.checkpoint import open_base
from ..lora import BaseDependent, BaseWeights, Layer, Lora
from .misfits import leave_out_misfits


def open_base_weights(base: Any) -> BaseWeights | None:
    """Return the weights of a base model given as a path, a model or pipeline, or already a function."""
    is_model = isinstance(base, torch.nn.Module) or isinstance(getattr(base, "components", None), dict)
    if base is None or (callable(base) and not is_model):
        given: BaseWeights | None = base
        return given
    if isinstance(base, str | os.PathLike):
        return open_base(base)
    # imported here, as it lies above this room and only a model as ``base`` needs it
    from ..models.base_weights import weights_of

    return weights_of(base)


def bind(loras: list[Lora], base: BaseWeights | None, reader: str) -> list[Lora]:
    """Return the LoRAs with their base-dependent adapters as layers, and trained biases as differences.

    Adapters that do not fit the base model are left out by name, and where LoRAs disagree about the shape of
    a weight, those that do not have the shape of the base model's.

    ``reader`` is the program whose arithmetic is followed where programs differ, one of ``READERS``.

    Raises:
        IncompatibleLoraError: if an adapter needs a weight that the base model does not have, or if most of a
            LoRA does not fit it.
    """
    contested = _contested(loras) if base is not None else set[str]()
    return [_bind_one(_warn_of_missing(lora, base), base, reader, contested) for lora in loras]


def _warn_of_missing(lora: Lora, base: BaseWeights | None) -> Lora:
    """Add a warning if the base model has only some of the layers, where that is known without reading it."""
    if not isinstance(base, Container):
        return lora
    missing = [name for name in lora.layers if name not in base]
    if not missing:
        return lora
    line = f"{len(missing)} of {len(lora.layers)} layers are not in the base model, such as {missing[0]}"
    return replace(lora, warnings=(*lora.warnings, line), origin=lora.origin or lora)


def _contested(loras: list[Lora]) -> set[str]:
    """Names of the weights that have different shapes in different LoRAs."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for lora in loras if len(loras) > 1 else ():
        for name, layer in lora.layers.items():
            shapes.setdefault(name, set()).add(layer.matrix_shape)
        for name, weight in lora.whole_weights.items():
            if not weight.is_vocabulary:
                shapes.setdefault(name, set()).add(tuple(weight.value.shape))
    return {name for name, different in shapes.items() if len(different) > 1}


def _without_misfits(lora: Lora, base: BaseWeights, contested: set[str]) -> Lora:
    """The LoRA without the adapters that the base model's weights cannot take."""
    names = {*lora.base_dependent, *(contested & {*lora.layers, *lora.whole_weights})}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(names):
        weight = base(name)
        if weight is not None:
            part = lora.base_dependent.get(name)
            turned = part is not None and part.layout in ("fan_in_fan_out", "embedding")
            shapes[name] = tuple(weight.shape[::-1] if turned else weight.shape)
    held = [*lora.layers, *lora.base_dependent, *lora.whole_weights]
    return leave_out_misfits(lora, shapes, held)


def _bind_one(lora: Lora, base: BaseWeights | None, reader: str, contested: set[str]) -> Lora:
    if base is None:
        if lora.base_dependent:
            raise IncompatibleLoraError(_needs_base(lora))
        return lora
    lora = _without_misfits(lora, base, contested)
    shaped = {
        name: _with_kernel(layer, base(name))
        for name, layer in lora.layers.items()
        if not layer.knows_its_kernel
    }
    needing: dict[str, BaseDependent] = dict(lora.base_dependent)
    for name, weight in lora.whole_weights.items():
        if name.endswith(".bias") and name not in lora.layers:
            needing[name] = Trained(weight.value, "vector", weight.key)
    layers: dict[str, Layer] = {}
    for name, adapter in needing.items():
        weight_of_base = base(name)
        if weight_of_base is not None:
            if weight_of_base.ndim == 0 or weight_of_base.numel() == 0:
                raise IncompatibleLoraError(
                    f"{lora.name}: the weight of {name} in the base model has the shape "
                    f"{tuple(weight_of_base.shape)}, which nothing can be merged into; its file is damaged"
                )
            layers[name] = Bound(adapter, weight_of_base, reader, lora=lora.name)
        elif name in lora.base_dependent and not adapter.is_optional:
            raise IncompatibleLoraError(
                f"{lora.name}: the base model has no weight for {name}, which its {adapter.kind} changes; "
                "the LoRA is for another model, or the base is only a part of the model"
            )
    if not (layers or any(layer is not lora.layers[name] for name, layer in shaped.items())):
        return lora
    rest = {name: weight for name, weight in lora.whole_weights.items() if name not in layers}
    return replace(
        lora,
        layers=lora.layers | shaped | layers,
        base_dependent={},
        whole_weights=rest,
        origin=lora.origin or lora,
    )


def _with_kernel(layer: Layer, weight: Tensor | None) -> Layer:
    """Set the kernel of a convolution whose factors were flattened: only the model knows it."""
    return layer if weight is None or weight.ndim < 3 else layer.with_kernel(tuple(weight.shape[2:]))


def _needs_base(lora: Lora) -> str:
    kinds = sorted({adapter.kind for adapter in lora.base_dependent.values()})
    name = next(iter(lora.base_dependent))
    return (
        f"{lora.name} has {len(lora.base_dependent)} layers of {' and '.join(kinds)}, such as {name}: what "
        "they change depends on the weights of the base model; give it as base="
    )
