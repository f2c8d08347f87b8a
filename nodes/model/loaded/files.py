"""Which files the LoRAs on a model came from: those that the workflow names, told by their tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from comfy_execution.graph_utils import is_link

from ....merge_ops.adapters.kind import Adapter
from ....merge_ops.errors import MergeError, ParameterError
from ....merge_ops.lora import Lora
from ...values.lora_names import find_files, match_files
from ..files.lora_files import list_lora_files, read_lora
from ..places.key_maps import KeyMaps
from ..target import Target

_TAG = re.compile(r"<lora:([^:<>\n]+)")
_ENDINGS = (".safetensors", ".sft")
_TOLD_BY_WEIGHT = ("key", "layout", "kernel")
Named = dict[str, Lora]  # the name of a file in the loras folders -> what it holds
Placed = dict[str, dict[Target, Adapter]]  # the same, by the weight of the model


def read_named(workflow: Mapping[str, Any] | None, node_id: str | None) -> Named:
    """Read the LoRA files that a node, and those that it is connected to, name in any of their inputs.

    A file that cannot be read is left out: the LoRA that came from it is then one without a file.
    """
    known = list_lora_files()
    found: Named = {}
    for text in dict.fromkeys(_texts_before(workflow or {}, str(node_id))):
        names = _TAG.findall(text) or ([text] if text.lower().endswith(_ENDINGS) else [])
        for file in (file for name in names for file in _files_of(name, known)):
            try:
                found[file] = read_lora(file)
            except MergeError:
                continue
    return found


def _files_of(name: str, known: list[str]) -> list[str]:
    """The files of a name, or of a pattern; none of a pattern that does not say of which folder."""
    try:
        return find_files(name, known) or match_files(name, known)
    except ParameterError:
        return []


def held_by(lora: Lora) -> dict[str, Adapter]:
    """Return all that a LoRA holds, by name."""
    return {**lora.layers, **lora.base_dependent, **lora.whole_weights}


def place_files(named: Named, maps: KeyMaps) -> Placed:
    """Find which weights of the model the files change; not for files that fit it in two ways."""
    placed: Placed = {}
    for name, file in named.items():
        held = held_by(file)
        try:
            placed[name] = {target: held[each] for each, target in maps.find_targets(held, file.name).items()}
        except MergeError:  # ComfyUI's own loaders put such a file nowhere
            continue
    return placed


def find_file(lora: Lora, targets: Mapping[str, Target], placed: Placed) -> str | None:
    """Return the name of the file that holds everything in a LoRA, bit for bit, on the same weights.

    ``targets`` are the weights of what the LoRA holds.
    """
    held = held_by(lora)
    for name, in_file in placed.items():
        if all(_is_alike(held[each], in_file.get(target)) for each, target in targets.items()):
            return name
    return None


def _texts_before(workflow: Mapping[str, Any], node_id: str) -> Iterator[str]:
    """All texts in the inputs of a node and of those before it, the nearest first."""
    waiting, seen = [node_id], set[str]()
    while waiting:
        number = waiting.pop(0)
        node = workflow.get(number)
        if number in seen or not isinstance(node, Mapping):
            continue
        seen.add(number)
        for value in dict(node.get("inputs") or {}).values():
            if is_link(value):
                waiting.append(str(value[0]))
            else:
                yield from _texts_in(value)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for one in inner:
            yield from _texts_in(one)


def _has_same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    pair = (one.contiguous(), other.to(one.device).contiguous())
    if one.dtype.itemsize == 1:  # torch does not compare numbers of 8 bits
        pair = (pair[0].view(torch.uint8), pair[1].view(torch.uint8))
    return torch.equal(*pair)


def _is_alike(one: Any, other: Any) -> bool:
    """Whether two adapters of one weight are the same, but for how their file spells them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and _has_same_bits(one, other)
    if is_dataclass(one):
        names = [each.name for each in fields(one) if each.name not in _TOLD_BY_WEIGHT]
        return all(_is_alike(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)
