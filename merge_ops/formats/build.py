"""A LoRA from the tensors of a file: its modules by name, each as the adapter that it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..adapters.kind import Adapter
from ..adapters.module import RawModule
from ..adapters.named import one_adapter
from ..adapters.reading import (
    EMPTY,
    UNRECOGNISED,
    adapters_of,
    group_by_module,
    reason_not_merged,
    without_empty,
)
from ..errors import LoraFormatError
from ..lora import BaseDependent, Layer, Lora, WholeWeight, is_packed
from ..names.prefixes import without_wrappers
from ..names.recognise import family_title
from ..names.spelling import canonical_name, is_doubled
from ..names.whole_file import settle_names
from .container import is_finite
from .experts import expert_layers
from .other_tools import BUNDLE, is_bundled
from .tokens import token_rows
from .warned import warnings_of_layers
from .whole import whole_weights

ScaleOf = Callable[[RawModule], float | None]


@dataclass(slots=True)
class _Held:
    """What a file holds, by canonical name, while it is read."""

    layers: dict[str, Layer] = field(default_factory=dict)
    base_dependent: dict[str, BaseDependent] = field(default_factory=dict)
    whole_weights: dict[str, WholeWeight] = field(default_factory=dict)

    def add(self, name: str, adapter: Adapter, stem: str) -> None:
        """Take in the adapter of one weight.

        Raises:
            LoraFormatError: if the weight has one already. A bias stored whole may be changed as well.
        """
        other = self.layers.get(name) or self.base_dependent.get(name) or self.whole_weights.get(name)
        if other is not None and not (isinstance(other, WholeWeight) and isinstance(adapter, Layer)):
            raise LoraFormatError(f"{other.key} and {stem} are one layer in two spellings; keep one of them")
        if isinstance(adapter, Layer):
            self.layers[name] = adapter
        elif isinstance(adapter, BaseDependent):
            self.base_dependent[name] = adapter
        else:
            self.whole_weights[name] = adapter

    def rename(self, names: Mapping[str, str]) -> None:
        """Give what has a new name that name.

        Raises:
            LoraFormatError: if two things come to one name.
        """
        before: list[tuple[str, Adapter]] = [
            *self.whole_weights.items(), *self.layers.items(), *self.base_dependent.items()
        ]  # fmt: skip
        self.layers, self.base_dependent, self.whole_weights = {}, {}, {}
        for name, adapter in before:
            self.add(names.get(name, name), adapter, adapter.key)

    def __bool__(self) -> bool:
        return bool(self.layers or self.base_dependent or self.whole_weights)


def build_lora(
    name: str,
    tensors: dict[str, Tensor],
    name_of: Callable[[str], str],
    scale_of: ScaleOf,
    config: dict[str, Any] | None = None,
    adapter: str | None = None,
) -> Lora:
    """Return the LoRA of a state dict.

    Args:
        name: what the LoRA is called.
        tensors: by key, as in the file.
        name_of: from the stem of a module's keys to its canonical name.
        scale_of: from a module to its scale, or None where the file's own alpha decides.
        config: that of a PEFT folder.
        adapter: which one to read of several that the keys name.

    Raises:
        LoraFormatError: if nothing in it can be merged, tensors contradict each other, or there is no such
            adapter.
    """
    tensors, _ = one_adapter(without_wrappers(tensors), adapter)
    modules, unknown = group_by_module(tensors)
    held, whole = _Held(), dict[str, tuple[str, WholeWeight]]()
    if config is not None:
        whole = whole_weights(unknown, tensors, config) | token_rows(unknown, tensors, config)
        held.layers = {name_of(stem): layer for stem, layer in expert_layers(modules, config).items()}
    held.whole_weights = {name_of(stem): weight for stem, weight in whole.values()}
    unmerged = {key: BUNDLE if is_bundled(key) else UNRECOGNISED for key in unknown if key not in whole}
    for stem, whole_module in modules.items():
        module, was_empty = without_empty(whole_module)
        reason = EMPTY if was_empty else reason_not_merged(module)
        if reason is not None:
            unmerged[name_of(stem)] = reason
        if reason is not None and not (was_empty and module.tensors):
            continue
        for place, part in adapters_of(module, scale_of(module), config or {}):
            held.add(name_of(stem) + place, part, stem)
    _refuse_damaged_weights(held.whole_weights)
    if not held:
        raise LoraFormatError(_nothing_usable([*modules, *unknown], unmerged))
    unmerged = _settle(held, unmerged)
    doubled = any(map(is_doubled, modules))
    warnings = ["the prefix 'unet' is doubled in the keys; it was read as one"] if doubled else []
    warnings += warnings_of_layers(held.layers, held.base_dependent, bool(held.whole_weights))
    return Lora(
        name,
        held.layers,
        unmerged=unmerged,
        warnings=tuple(warnings),
        adapter=adapter,
        base_dependent=held.base_dependent,
        whole_weights=held.whole_weights,
    )


def _refuse_damaged_weights(weights: Mapping[str, WholeWeight]) -> None:
    """Refuse what is looked for elsewhere only in an adapter: packed numbers, NaN and infinity."""
    for weight in weights.values():
        dtype = weight.value.dtype
        if is_packed(dtype) or dtype.is_complex:
            raise LoraFormatError(f"{weight.key} is stored as {dtype}; quantised weights are not supported")
        if not is_finite(weight.value):
            raise LoraFormatError(
                f"{weight.key} holds NaN or infinity; the file is damaged, use another copy"
            )


def _settle(held: _Held, unmerged: dict[str, str]) -> dict[str, str]:
    """Give everything the name that only the whole file tells; return ``unmerged`` with its new names."""
    as_they_are = (UNRECOGNISED, BUNDLE)
    named = [name for name, reason in unmerged.items() if reason not in as_they_are]
    new = settle_names([*held.layers, *held.base_dependent, *held.whole_weights, *named], held.layers)
    if new:
        held.rename(new)
    return {
        name if reason in as_they_are else new.get(name, name): reason for name, reason in unmerged.items()
    }


def _nothing_usable(keys: list[str], unmerged: Mapping[str, str]) -> str:
    reasons = {reason: name for name, reason in unmerged.items() if reason != UNRECOGNISED}
    if reasons:
        listed = "; ".join(f"{name} is {reason}" for reason, name in sorted(reasons.items()))
        return f"the file holds nothing that can be merged: {listed}"
    shown = ", ".join(repr(key) for key in keys[:3]) or "none"
    title = family_title(map(canonical_name, keys))
    return (
        f"the file holds no LoRA: its keys are {shown}{f' (of {title})' if title else ''}, and keys such as "
        "'lora_unet_….lora_down.weight' or '….lora_A.weight' are expected"
    )
