"""A merge as core's ``LORA_MODEL``: a state dict whose tensors are made when they are first read."""

from __future__ import annotations

from collections.abc import ItemsView, Sequence, ValuesView
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....merge_ops.adapters.configuration import CONFIGURATION
from ....merge_ops.formats import from_tensors
from ....merge_ops.lora import Lora
from ....merge_ops.merging.merge import merge
from ....merge_ops.merging.merged import Merged
from ....merge_ops.names.parts import is_language_model
from ....merge_ops.names.spelling import kohya_name
from ....merge_ops.saving.carried import carried_over
from ..places.language import spell_for_comfyui

_ROLES = ("lora_up.weight", "lora_down.weight", "alpha")


class MergedLoraModel(dict[str, Tensor]):
    """The state dict of a merged LoRA under kohya's keys, for any node that takes ``LORA_MODEL``.

    Our own nodes use ``merged`` instead, which is exact. Others see a full-rank merge as a LoRA whose rank is
    the sum of the source ranks; each layer is truncated when it is first read. ``notes`` are lines for those
    who save or apply it.
    """

    def __init__(
        self, merged: Merged | None, stems: dict[str, str] | None = None, notes: Sequence[str] = ()
    ) -> None:
        self.merged = merged
        self.notes = list(notes)
        known = stems or {}
        self.stems = {
            name: known.get(name) or _stem(merged, name, merged.layer(name).template.key)
            for name in (merged.layers if merged else ())
        }
        self._layers = {
            f"{stem}.{role}": name for name, stem in self.stems.items() for role in _roles(merged, name)
        }
        super().__init__(dict.fromkeys(self._layers))  # None: not made yet
        for name, weight in (merged.whole_weights if merged else {}).items():
            self.stems[name] = known.get(name) or _stem(merged, name, weight.key)
            if name not in list_unnamed_weights(merged):
                is_config = weight.why == CONFIGURATION
                key = weight.key if is_config else f"{self.stems[name]}.set_weight"
                super().__setitem__(key, weight.value)

    def __getitem__(self, key: str) -> Tensor:
        value = super().__getitem__(key)
        if value is None:
            self._make(self._layers[key])
            value = super().__getitem__(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the tensor, or the default if the key does not exist."""
        return self[key] if key in self else default

    def items(self) -> ItemsView[str, Tensor]:
        """Make and return all tensors."""
        return {key: self[key] for key in self}.items()

    def values(self) -> ValuesView[Tensor]:
        """Make and return all tensors."""
        return {key: self[key] for key in self}.values()

    def _make(self, name: str) -> None:
        assert self.merged is not None
        layer = self.merged.layer(name)
        if layer.template.layout == "vector":
            self[f"{self.stems[name]}.{_roles(self.merged, name)[0]}"] = layer.matrix().flatten().cpu()
            return
        if not layer.is_low_rank:
            layer = layer.truncated(sum(layer.aligned.all_ranks), None, torch.float32)
        pair = layer.factors()
        assert pair is not None
        up, down = (pair[1].T, pair[0].T) if layer.template.stored_in_out else pair
        up, down = up.contiguous().cpu(), down.contiguous().cpu()
        kernel = layer.template.kernel
        if kernel:
            up, down = up.reshape(*up.shape, *(1 for _ in kernel)), down.reshape(down.shape[0], -1, *kernel)
        values = (up, down, torch.tensor(float(down.shape[0])))
        for role, value in zip(_ROLES, values, strict=True):
            self[f"{self.stems[name]}.{role}"] = value
        if layer.padded_to:
            self[f"{self.stems[name]}.reshape_weight"] = torch.tensor(layer.padded_to)


def _roles(merged: Merged | None, name: str) -> tuple[str, ...]:
    if merged is not None and merged.layer(name).template.layout == "vector":
        return ("diff_b",) if name.endswith(".bias") else ("diff",)
    if merged is not None and merged.layer(name).padded_to:
        return (*_ROLES, "reshape_weight")
    return _ROLES


def list_unnamed_weights(merged: Merged | None) -> list[str]:
    """List the whole weights that have no key in kohya's format: biases, and single rows of an embedding."""
    held = merged.whole_weights.items() if merged else ()
    return [name for name, weight in held if name.endswith(".bias") or weight.rows]


def read_lora_model(lora: dict[str, Tensor]) -> MergedLoraModel:
    """Read the LORA_MODEL of any node; a plain state dict becomes a merge of one LoRA."""
    return lora if isinstance(lora, MergedLoraModel) else MergedLoraModel(merge([from_tensors("lora", lora)]))


def as_lora(name: str, lora: dict[str, Tensor]) -> Lora:
    """Return the LORA_MODEL of any node as a LoRA; a merge has the metadata that its saved file would."""
    read = from_tensors(name, lora)
    merged = lora.merged if isinstance(lora, MergedLoraModel) else None
    return read if merged is None else replace(read, metadata=carried_over(list(merged.loras)))


def _stem(merged: Merged, name: str, key: str) -> str:
    """The spelling that ComfyUI most likely knows, where no model is there to ask."""
    component = name.partition(".")[0]
    name = name.removesuffix(".bias")
    if component == "unet" or component in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        numbered = any(layer.startswith("text_encoder_2.") for layer in merged.layers)
        return kohya_name(name, single_text_encoder=not numbered)
    is_language = is_language_model(name) or component == "text_encoder_4"
    return spell_for_comfyui(name) if is_language else key.removesuffix(".weight") or name
