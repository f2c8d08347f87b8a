"""From a file's tensors to adapters: which tensor plays which role, and what kind of adapter a module holds.

Every table here is derived from the rows of ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from torch import Tensor

from ..errors import LoraFormatError
from ..lora import BaseDependent, Layer
from . import KINDS
from .kind import Adapter, Kind
from .module import RawModule

_T = TypeVar("_T")

EMPTY = "a layer of rank 0, which adds nothing"
UNRECOGNISED = "unrecognised key"  # the reason given for a key whose ending means nothing to us


@dataclass(frozen=True)
class Tables:
    """Everything that the rows say, as tables."""

    kinds: Mapping[str, Kind]  # by name
    roles: Mapping[str, str]  # suffix of a key -> role; "" for a kind that is refused
    owners: Mapping[str, Kind]  # suffix of a key -> the kind that it belongs to
    suffixes: tuple[str, ...]  # the longest first, since the longest one that fits counts
    shown: Mapping[str, str]  # role -> name of the kind that it shows
    companions: Mapping[str, tuple[str, ...]]  # role -> names of the kinds that it may stand beside
    rank_roles: tuple[str, ...]
    whole_roles: tuple[str, ...]
    records: Mapping[str, type]  # by the name of the class
    peft_types: Mapping[str, Kind]  # by what PEFT's configurations call it


def tables_of(kinds: Sequence[Kind]) -> Tables:
    """Return the tables of some rows.

    Raises:
        ValueError: if a row names what is in no row, or two rows claim one name, suffix, role or record.
    """
    by_name: dict[str, Kind] = {}
    roles = {".alpha": "alpha"}
    owners: dict[str, Kind] = {}
    owner_of_role: dict[str, Kind] = {}
    records: dict[str, type] = {}
    peft_types: dict[str, Kind] = {}
    for kind in kinds:
        _claim(by_name, kind.name, kind, kind)
        for suffix, role in kind.roles.items():
            _claim(roles, suffix, role, kind)
            owners[suffix] = kind
            if role and owner_of_role.setdefault(role, kind) is not kind:
                raise ValueError(f"the role {role!r} of {kind.name} belongs to another kind already")
        for record in kind.records:
            _claim(records, record.__name__, record, kind)
        for peft_type in kind.peft_types:
            _claim(peft_types, peft_type, kind, kind)
    for kind in kinds:
        _check_row(kind, by_name)
    return Tables(
        by_name,
        roles,
        owners,
        tuple(sorted(roles, key=len, reverse=True)),
        {
            role: kind.name
            for role, kind in owner_of_role.items()
            if not kind.goes_with_any and role not in kind.extra
        },
        {role: kind.beside or (kind.name,) for role, kind in owner_of_role.items() if role in kind.extra},
        tuple(role for kind in kinds for role in kind.rank_roles),
        tuple(role for kind in kinds for role in kind.whole_roles),
        records,
        peft_types,
    )


def _claim(table: dict[str, _T], name: str, value: _T, kind: Kind) -> None:
    """Enter a value, or refuse a name that another row has."""
    if name in table:
        raise ValueError(f"{name!r} of {kind.name} belongs to another kind already")
    table[name] = value


def _check_row(kind: Kind, known: Mapping[str, Kind]) -> None:
    """Refuse a row that names a role or a kind that there is not: it would have no effect."""
    named = {*kind.extra, *kind.rank_roles, *kind.whole_roles}
    stray = sorted(named - set(kind.roles.values())) + sorted(set(kind.beside) - known.keys())
    if stray:
        raise ValueError(f"{kind.name} names {', '.join(stray)}, which is in no row")


TABLES = tables_of(KINDS)


def group_by_module(tensors: dict[str, Tensor]) -> tuple[dict[str, RawModule], list[str]]:
    """Return the modules of a file by stem, and the keys whose suffix means nothing to us.

    Raises:
        LoraFormatError: if a module holds a role in two spellings.
    """
    modules: dict[str, RawModule] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        stem, role, kind = place_of(key, tensors)
        if role is None:
            unknown.append(key)
            continue
        module = modules.setdefault(stem, RawModule(stem))
        if kind is not None and kind.is_refused:
            module.refused_kinds.add(kind.name)
            continue
        if role in module.tensors:
            raise LoraFormatError(f"{stem} occurs in two spellings, one of them {key}; keep one of them")
        module.tensors[role] = tensor
    return modules, unknown


def place_of(key: str, tensors: Container[str]) -> tuple[str, str | None, Kind | None]:
    """Return ``(stem of the module, role, kind)`` of a key; the role is None if it means nothing to us."""
    suffix = _suffix_of(key, TABLES.suffixes)
    if suffix is not None:
        stem = key[: -len(suffix)] + (suffix.partition(".")[0] if suffix.startswith("_lora") else "")
        return stem, TABLES.roles[suffix], TABLES.owners.get(suffix)
    stem = key.removesuffix(".weight")
    for kind in TABLES.kinds.values():
        if kind.weight_beside is not None and f"{stem}{kind.weight_beside[0]}" in tensors:
            return stem, kind.weight_beside[1], kind
    return key, None, None


def is_of_adapter(key: str) -> bool:
    """Return whether the end of a key shows a kind of adapter that we read."""
    kind = TABLES.owners.get(_suffix_of(key, TABLES.suffixes) or "")
    return key.endswith(".alpha") or (kind is not None and not kind.is_refused)


@lru_cache(maxsize=1 << 16)
def _suffix_of(key: str, suffixes: tuple[str, ...]) -> str | None:
    return next((suffix for suffix in suffixes if key.endswith(suffix)), None)


def reason_not_merged(module: RawModule) -> str | None:
    """Return why a module cannot be merged, or None if it can."""
    if module.refused_kinds:
        return f"{' + '.join(sorted(module.refused_kinds))}, which cannot be merged"
    roles = set(module.tensors) - {"alpha"}
    if not roles:
        return "an alpha without the factors it belongs to"
    for kind in TABLES.kinds.values():
        if kind.alone and len(roles) == 1 and roles <= set(kind.roles.values()):
            return kind.alone
    return None


def without_empty(module: RawModule) -> tuple[RawModule, bool]:
    """Return the module without factors of rank 0, and whether it had any; a bias beside them stays.

    Raises:
        LoraFormatError: if something else in the module depends on them.
    """
    tensors = module.tensors
    if all(tensor.numel() for tensor in tensors.values()):
        return module, False
    empty = [
        role
        for role in TABLES.rank_roles
        if role in tensors and tensors[role].shape[:1] == (0,) and 0 not in tensors[role].shape[1:]
    ]
    kind = kind_of(module) if empty and not module.refused_kinds else None
    if kind is None or sum(0 in tensor.shape for tensor in tensors.values()) < 2:
        return module, False  # one half alone is a contradiction, which reading the pair names
    own = {"alpha", *kind.roles.values()}
    rest = {role: tensor for role, tensor in tensors.items() if role not in own}
    if "up_bias" in rest or any(other.wrap is not None and _is_in(module, other) for other in KINDS):
        raise LoraFormatError(
            f"{module.stem} has rank 0, and other tensors that need its factors; leave it out"
        )
    return RawModule(module.stem, rest), True


def kind_of(module: RawModule) -> Kind | None:
    """Return the kind of adapter that a module's weight has; None if only its bias is adapted.

    Raises:
        LoraFormatError: if it is of two kinds at once, or holds a role that its kind has no use for.
    """
    names = {TABLES.shown[role] for role in module.tensors if role in TABLES.shown}
    if len(names) > 1:
        raise LoraFormatError(
            f"{module.stem} is of two kinds at once ({', '.join(sorted(names))}); keep one of them"
        )
    wraps = [kind.name for kind in TABLES.kinds.values() if kind.wrap is not None and _is_in(module, kind)]
    if len(wraps) > 1:
        raise LoraFormatError(f"{module.stem} is {' and '.join(sorted(wraps))} at once; keep one of them")
    name = names.pop() if names else None
    for role, fitting in TABLES.companions.items():
        if role in module.tensors and name not in fitting:
            raise LoraFormatError(
                f"{module.stem} has the {role} of an adapter beside {name or 'a bias'}, which cannot be "
                "merged; convert the file, or leave the module out"
            )
    return None if name is None else TABLES.kinds[name]


def rank_in_tensors(module: RawModule) -> tuple[bool, int | None]:
    """Return whether a PEFT configuration's alpha scales a module, and the rank that its tensors show."""
    shapes = [tensor.shape for role in TABLES.rank_roles if (tensor := module.tensors.get(role)) is not None]
    if shapes:
        return True, shapes[0][0] if shapes[0] else None
    return any(role in module.tensors for role in TABLES.whole_roles), None


def adapters_of(
    module: RawModule, scale: float | None, config: Mapping[str, Any]
) -> Iterator[tuple[str, Adapter]]:
    """Yield what a module holds, each with what follows the module's name: ``""`` or ``.bias``.

    ``scale`` None means what the file's own alpha says. ``config`` is that of a PEFT folder.
    """
    kind = kind_of(module)
    if kind is not None and kind.read is not None:
        for place, adapter in kind.read(module, scale, config).items():
            yield place, _wrapped(_turned(adapter, config) if not place else adapter, module)
    for other in TABLES.kinds.values():
        if other.read is not None and other.goes_with_any:
            yield from other.read(module, scale, config).items()


def _turned(adapter: Adapter, config: Mapping[str, Any]) -> Adapter:
    """The adapter of a weight that is stored (in, out), where the configuration says so."""
    if isinstance(adapter, BaseDependent) and config.get("fan_in_fan_out"):
        return adapter.changed(layout="fan_in_fan_out")
    return adapter


def _wrapped(adapter: Adapter, module: RawModule) -> Adapter:
    """The adapter as part of another kind, where the module holds that kind's tensors too."""
    for kind in TABLES.kinds.values():
        if kind.wrap is not None and isinstance(adapter, Layer) and _is_in(module, kind):
            return kind.wrap(adapter, module)
    return adapter


def _is_in(module: RawModule, kind: Kind) -> bool:
    return not module.tensors.keys().isdisjoint(kind.roles.values())
