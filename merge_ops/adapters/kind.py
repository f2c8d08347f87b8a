"""The row that describes one kind of adapter: its tensors, its records, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..lora import BaseDependent, Layer, WholeWeight
from .module import RawModule

Adapter = Layer | BaseDependent | WholeWeight
Adapters = dict[str, Adapter]  # by what follows the module's name: "" for its weight, ".bias" for its bias
# read(module, scale, config): scale None means alpha over rank; config is that of a PEFT folder, or empty
Read = Callable[[RawModule, float | None, Mapping[str, Any]], Adapters]
Wrap = Callable[[Layer, RawModule], BaseDependent]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of adapter. ``read`` and ``wrap`` are both None for a kind that is named and refused."""

    name: str
    roles: Mapping[str, str] = field(default_factory=dict)  # suffix of a key -> role of its tensor
    records: tuple[type, ...] = ()  # the classes that it is read into
    read: Read | None = None
    wrap: Wrap | None = None  # for a kind that changes what another kind's layer means
    beside: tuple[str, ...] = ()  # names of the kinds that it may wrap
    goes_with_any: bool = False  # it stands beside a module's weight of any kind, or alone
    extra: frozenset[str] = frozenset()  # roles that refine this kind and do not show it by themselves
    rank_roles: tuple[str, ...] = ()  # the rank is the number of rows of the first of these
    whole_roles: tuple[str, ...] = ()  # roles of a factor that may be stored whole and then has no rank
    weight_beside: tuple[str, str] | None = None  # (suffix, role): beside it, plain ``.weight`` has this role
    alone: str = ""  # why these tensors cannot be merged without those of another kind
    peft_types: tuple[str, ...] = ()  # what PEFT's configurations call it
    peft_alpha: str = "lora_alpha"  # the setting that holds alpha there

    @property
    def is_refused(self) -> bool:
        """True for a kind that is recognised only to be named."""
        return self.read is None and self.wrap is None and bool(self.roles)
