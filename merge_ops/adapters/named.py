"""Keys that name their adapter, as the state dict of a PEFT model has them and its saved files do not.

``x.lora_A.lightx2v.weight`` is ``x.lora_A.weight`` of the adapter ``lightx2v``. Every role of PEFT can be
written so; those are the suffixes of the rows of ``KINDS`` that have a twin with ``.default`` in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import LoraFormatError, did_you_mean, shown
from .reading import TABLES, is_of_adapter, place_of

_DEFAULT = ".default"
_TOKENS = "trainable_tokens_delta"  # rows of an embedding; no kind of adapter
_SAVED = "modules_to_save"  # whole modules, beside which the model keeps those of the base
_OF_BASE = ".original_module."
_ENDS = (".weight", ".bias", "")
_ROLES = sorted(
    {suffix.partition(_DEFAULT)[0][1:] for suffix in TABLES.roles if _DEFAULT in suffix} | {_TOKENS, _SAVED},
    key=len,
    reverse=True,
)
_NAMED = re.compile(rf"(?P<stem>.*)\.(?P<role>{'|'.join(_ROLES)})\.(?P<rest>.+)")
# by far the most keys, which name no adapter
_PLAIN = (".lora_A.weight", ".lora_B.weight", ".alpha", ".lora_down.weight", ".lora_up.weight")
_PEFT = tuple(f".{role}{end}" for role in _ROLES for end in ("", ".weight", ".bias"))


def unnamed(key: str, bare_pairs: bool = True) -> tuple[str, str]:
    """Return a key without the name of its adapter, and that name; it is empty if the key has none.

    ``bare_pairs`` False takes ``x.lora_A.name`` for something else: only AdaLoRA writes pairs so.
    """
    if key.endswith(_PLAIN):
        return key, ""
    found = _NAMED.fullmatch(key)
    if found is None:
        return key, ""
    stem, role, rest = found.groups()
    if role == _TOKENS:
        return f"{stem}.{role}", rest
    if role == _SAVED:
        name, _, inner = rest.partition(".")
        return f"{stem}.{inner}", name
    for end in _ENDS:
        name = rest.removesuffix(end)
        is_bare_pair = not end and role in ("lora_A", "lora_B")
        if name + end != rest or f".{rest}" in _ENDS or (is_bare_pair and not bare_pairs):
            continue
        if f".{role}{_DEFAULT}{end}" in TABLES.roles:
            return f"{stem}.{role}{_DEFAULT}{end}", name
    return key, ""


def shows_adapter(key: str) -> bool:
    """Return whether a key as a file spells it shows a kind of adapter that we read."""
    return is_of_adapter(key) or is_of_adapter(unnamed(key)[0])


def is_read(key: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the numbers behind a key are read; an alpha is looked at only where it has an effect."""
    plain, name = unnamed(key)
    _, role, kind = place_of(plain, tensors if not name else {plain: tensors[key]})
    return role not in (None, "alpha") and not (kind is not None and kind.is_refused)


def one_adapter(
    tensors: dict[str, Tensor], adapter: str | None = None
) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of one adapter, under keys that every kind knows, and its name if the keys say it.

    ``adapter`` chooses among several. What belongs to no adapter is kept.

    Raises:
        LoraFormatError: if the keys name several adapters and none is chosen, or there is none of that name.
    """
    if adapter is None and all(key.endswith(_PLAIN) for key in tensors):
        return tensors, None
    is_adalora = any(".lora_E" in key for key in tensors)
    split = {key: unnamed(key, is_adalora) for key in tensors}
    names = dict.fromkeys(name for _, name in split.values() if name)
    if not names:
        if adapter is not None:
            raise LoraFormatError(
                f"its keys name no adapter, so {adapter!r} cannot be chosen; leave that out"
            )
        return tensors, None
    chosen = _chosen(names, [key for key, (_, name) in split.items() if not name], adapter)
    kept: dict[str, Tensor] = {}
    holds_modules = any(f".{_SAVED}." in key for key in tensors)
    for key, (plain, name) in split.items():
        if holds_modules and _OF_BASE in key:
            continue  # the base model's own weights, in which the adapter has no part
        if name in ("", chosen) and (name or not _is_of_another(key, names)):
            if plain in kept:
                raise LoraFormatError(f"{plain} occurs in two spellings, one of them {key}; keep one of them")
            kept[plain] = tensors[key]
    return kept, chosen


def _chosen(names: Iterable[str], others: list[str], adapter: str | None) -> str:
    known = list(names)
    if adapter is not None and adapter not in known:
        raise LoraFormatError(f"the file holds no adapter {adapter!r}{did_you_mean(adapter, known)}")
    if adapter is not None:
        return adapter
    bare = next((key for key in others if key.endswith(_PEFT)), None)
    listed = [shown(name) for name in known]
    if bare is not None and known != [_DEFAULT[1:]]:
        listed.append(f"one without a name ({bare})")
    if len(listed) > 1:
        raise LoraFormatError(
            f"the file holds {len(listed)} adapters, {' and '.join(listed)}; choose one with "
            f"adapter={known[0]!r}, or save them one by one"
        )
    return known[0]


def _is_of_another(key: str, names: Iterable[str]) -> bool:
    """True for a key without a name beside one with a name, unless all belong to PEFT's default adapter."""
    return key.endswith(_PEFT) and list(names) != [_DEFAULT[1:]]
