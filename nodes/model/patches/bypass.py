"""A merge that layers add to their outputs, by ComfyUI's bypass mode: no weight is changed, or unpacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ....merge_ops.adapters import Bound
from ....merge_ops.lora import LowRank
from ....merge_ops.merging.merged import Merged
from ....merge_ops.merging.merged_layer import MergedLayer
from ..bypass_limits import WHOLE, why_not_bypassed
from ..core_bypass import add_bypass, apply_delta, count_rows, module_of
from ..host_parts import rows
from ..merges.summary import count_loras
from ..target import Target
from .one_patch import as_one_patch, concatenated
from .patch import add_merge, make_lora_adapter

_BASED = "DoRA and other kinds that depend on the weight"


class BypassAdapter(LoRAAdapter):  # type: ignore[misc]  # ComfyUI is not typed
    """What a merge adds to the output of a layer: a LoRA, and deltas that are made anew at each call.

    ``weights`` is the state of the LoRA, or None.
    """

    def __init__(
        self, weights: tuple[Any, ...] | None, layers: Sequence[tuple[Target, MergedLayer]], height: int
    ) -> None:
        super().__init__(set(), weights)
        self.layers = layers
        self.height = height  # rows of the weight
        self._given = weights

    def h(self, x: Tensor, base_out: Tensor) -> Tensor:
        """Return what is added to the output of the layer for an input."""
        if self.weights is not None:
            self._follow(x.device)
            own = super().h(x, base_out)
            return own + self._of_deltas(x) if self.layers else own
        return self._of_deltas(x)

    def _follow(self, device: torch.device) -> None:
        """ComfyUI moved the factors to its main device, where a text encoder need not compute."""
        assert self._given is not None
        if self.weights[0].device != device:
            self.weights = tuple(
                given.to(device, moved.dtype) if isinstance(given, Tensor) else given
                for given, moved in zip(self._given, self.weights, strict=True)
            )

    def _of_deltas(self, x: Tensor) -> Tensor:
        return apply_delta(self, x, self._delta(x.device).to(x.dtype))

    def _delta(self, device: torch.device) -> Tensor:
        total = None
        for target, layer in self.layers:
            matrix = layer.matrix(device)
            if total is None:
                total = torch.zeros(self.height, matrix.shape[1], device=device)
            place = rows(target, self.height)
            total[slice(None) if place is None else place] += matrix
        assert total is not None
        return total


def add_merge_by_bypass(
    part: Any, merged: Merged, targets: Mapping[str, Target], strength: float
) -> tuple[str, list[str]]:
    """Add a merge to a (cloned) MODEL or CLIP by bypass, and by patches what bypass cannot hold.

    Returns what was done, and a line for all that is patched after all.
    """
    held, stayed = _choose(part, merged, targets)
    patched = {name: target for name, target in targets.items() if name not in held}
    add_merge(part, merged, patched, strength)
    by_key: dict[str, list[tuple[Target, MergedLayer]]] = {}
    for name, target in held.items():
        by_key.setdefault(target.key, []).append((target, merged.layer(name)))
    adapters: dict[str, BypassAdapter] = {}
    full = 0
    for key, layers in by_key.items():
        height = count_rows(module_of(part, key)) or layers[0][1].template.matrix_shape[0]
        adapters[key] = _make_adapter(layers, height)
        full += bool(adapters[key].layers)
    if adapters:
        add_bypass(part, adapters, strength)
    said = f"{count_loras(len(merged.loras))} by bypass: {len(adapters)} layers add them to their outputs"
    return said, [*_list_full(full), *_list_stayed(stayed)]


def _choose(
    part: Any, merged: Merged, targets: Mapping[str, Target]
) -> tuple[dict[str, Target], dict[str, list[str]]]:
    """The layers that bypass can hold, and the others by what they are."""
    held: dict[str, Target] = {}
    stayed: dict[str, list[str]] = {}
    for name, target in targets.items():
        if name in merged.whole_weights:
            stayed.setdefault(WHOLE, []).append(name)
        if name not in merged.layers:
            continue
        layer = merged.layer(name)
        why = why_not_bypassed(layer.template, target, module_of(part, target.key))
        if not why and layer.fixed is None and any(isinstance(each, Bound) for each in _parts(layer)):
            why = _BASED
        if why:
            stayed.setdefault(why, []).append(name)
        else:
            held[name] = target
    return held, stayed


def _parts(layer: MergedLayer) -> list[Any]:
    added = layer.added
    return [*layer.aligned.parts, *(() if added is None else added.aligned.parts)]


def _make_adapter(layers: Sequence[tuple[Target, MergedLayer]], height: int) -> BypassAdapter:
    pairs: list[LowRank] = []
    rest: list[tuple[Target, MergedLayer]] = []
    for target, layer in layers:
        pair, others = as_one_patch(layer)
        if pair is not None:
            pairs.append(_in_place(pair, target, height))
        rest += [(target, other) for other in others]
    state = make_lora_adapter(concatenated(pairs), set()).weights if pairs else None
    return BypassAdapter(state, rest, height)


def _in_place(pair: LowRank, target: Target, height: int) -> LowRank:
    """The same for the whole weight: zeros where the rows of others are, and its own in their order."""
    place = rows(target, height)
    if place is None:
        return pair
    up = pair.up.new_zeros(height, pair.rank)
    up[place] = pair.up
    return replace(pair, up=up)


def _list_full(count: int) -> list[str]:
    if not count:
        return []
    return [
        f"bypass: the change of {count} layers is of full rank, and is made anew at every step; with a rank, "
        "it is low rank and fast"
    ]


def _list_stayed(stayed: Mapping[str, Sequence[str]]) -> list[str]:
    if not stayed:
        return []
    kinds = "; ".join(f"{len(names)} {why}, such as {names[0]}" for why, names in stayed.items())
    return [f"bypass cannot hold these, which are patched as usual: {kinds}"]
