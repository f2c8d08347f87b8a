"""Where the layers of LoRAs are in a checkpoint: in which rows of which tensors, in every layout.

A file in ComfyUI's layout has the layers of the model's authors, of which LoRAs in diffusers' names change
rows; one in diffusers' layout has the rows of the authors' layers in several tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..names.checkpoint import DENOISER, Parts, keys_of_layer, lookup_key
from ..names.fused import parts_of
from ..names.language import split_wrappers
from ..names.open_clip import from_open_clip
from ..names.original import all_diffusers_names, all_original_names, has_halves, pieces
from ..names.unet import LDM_HEADS, blocks_of, from_ldm
from .header import Entry
from .shard import Shard

_ENDS = (".weight", ".scale")  # of a module's weight; a norm may call it by the second
_XLABS = re.compile(r"(single_blocks\.\d+\.linear1)")

Stored = dict[str, dict[str, "Span"]]  # module -> "" for its weight, ".bias" for its bias


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of a tensor that are a layer, or are some of its rows."""

    component: str  # the folder of a pipeline that the tensor is in, or nothing
    entry: Entry
    rows: tuple[int, int] | None = None  # (start, length); None for all
    turned: bool = False  # stored as (in, out)
    swapped: bool = False  # the two halves of the rows are the other way round

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's rows, ``(out, in, *kernel)`` or ``(out,)``."""
        shape = self.entry.shape[::-1] if self.turned else self.entry.shape
        return shape if self.rows is None else (self.rows[1], *shape[1:])


Spans = tuple[Span, ...]  # of one layer, its upper rows first


class LayerIndex:
    """The layers of a checkpoint, by every name that LoRAs have for them."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._spans: dict[str, Spans] = {}
        self.parts: set[str] = set()  # of a pipeline, that the checkpoint has
        stored = _stored(list(shards))
        for part, modules in stored.items():
            self.parts.add(part)
            self._add_as_stored(part, modules)
        for part, modules in stored.items():
            if part == DENOISER or part in ("transformer_2", "prior"):
                self._add_other_layout(part, modules)
        self._of_versions = _of_versions(stored.get(DENOISER, {}))

    def find(self, layer: str, stem: str = "") -> Spans:
        """Return the rows of a layer, or nothing if the checkpoint has no such layer.

        ``stem`` is what the LoRA's file calls the module.
        """
        for key in keys_of_layer(layer, stem):
            if (found := self._spans.get(key)) is not None:
                return found
        parts = split_wrappers(layer)
        return () if parts is None else self._of_versions.get((parts[0], parts[2]), ())

    def find_fused(self, layer: str, stem: str = "") -> Spans:
        """Return the rows of a layer, also of one that is fused where the checkpoint has its parts."""
        if found := self.find(layer, stem):
            return found
        for names in parts_of(layer):
            spans = [self.find(name) for name in names]
            if all(spans):
                return tuple(span for each in spans for span in each)
        return ()

    def _add(self, part: str, name: str, spans: Sequence[Span]) -> None:
        self._spans.setdefault(lookup_key(part, name), tuple(spans))

    def _add_as_stored(self, part: str, modules: Stored) -> None:
        for module, ends in modules.items():
            for end, span in ends.items():
                self._add(part, module + end, [span])
                if end == "" and part.startswith("text_encoder"):
                    self._add(part, module.removeprefix("model."), [span])

    def _add_other_layout(self, part: str, modules: Stored) -> None:
        """Add the layers that the other layout has: rows of fused ones, and fused ones of several."""
        is_ldm = any(module.startswith(LDM_HEADS) for module in modules)
        blocks = blocks_of(modules) if is_ldm else {}
        fused: dict[tuple[str, int, bool], dict[int, str]] = {}
        for module, ends in modules.items():
            if is_ldm:
                own = from_ldm(module, blocks)
                # some programs call the embedding of SDXL's sizes by the name that other UNets have there
                for name in (own, from_ldm(module), own.replace("add_embedding.", "class_embedding.")):
                    for end, span in ends.items():
                        self._add(part, name + end, [span])
            if "" not in ends:
                continue
            shape = ends[""].entry.shape
            halves = has_halves(shape)
            for names, may_swap in all_diffusers_names(module):
                if len(names) == 1 or len(shape) > 1:
                    rows = pieces(len(names), shape) if len(names) > 1 else [None]
                    self._add_rows(part, names, rows, ends, may_swap and halves)
            if _XLABS.fullmatch(module) and len(shape) > 1:
                self._add_rows(part, [f"{module}_qkv"], [(0, 3 * shape[1])], ends, False)
            for original, place, count, may_swap in all_original_names(module):
                fused.setdefault((original, count, may_swap and halves), {})[place] = module
        for (original, count, swapped), parts in fused.items():
            if len(parts) == count:
                self._add_joined(part, original, [modules[parts[i]] for i in range(count)], swapped)

    def _add_rows(
        self,
        part: str,
        names: Sequence[str],
        rows: Sequence[tuple[int, int] | None],
        ends: Mapping[str, Span],
        swapped: bool,
    ) -> None:
        for name, each in zip(names, rows, strict=True):
            for end, span in ends.items():
                self._add(part, name + end, [replace(span, rows=each, swapped=swapped)])

    def _add_joined(
        self, part: str, original: str, parts: Sequence[Mapping[str, Span]], swapped: bool
    ) -> None:
        for end in ("", ".bias"):
            if all(end in ends for ends in parts):
                self._add(part, original + end, [replace(ends[end], swapped=swapped) for ends in parts])


def _stored(shards: Sequence[Shard]) -> dict[str, Stored]:
    """The modules of each part of the pipeline, as they are stored."""
    parts = Parts([entry.name for shard in shards if not shard.component for entry in shard.entries])
    stored: dict[str, Stored] = {}
    for shard in shards:
        for entry in shard.entries:
            named = parts.name(shard.component, entry.name)
            if named is None:
                continue
            span = Span(shard.component, entry)
            for part in named.parts:
                _store(stored.setdefault(part, {}), part, named.path, span)
            if not shard.component and entry.name.startswith("text_encoders."):
                _store(stored.setdefault("text_encoders", {}), "", entry.name[len("text_encoders.") :], span)
    return stored


def _store(modules: Stored, part: str, name: str, span: Span) -> None:
    clip = from_open_clip(name) if part.startswith("text_encoder") else None
    if clip is not None:
        rows = span.entry.shape[0] // len(clip.layers) if span.entry.shape else 0
        for place, layer in enumerate(clip.layers):
            own = None if len(clip.layers) == 1 else (place * rows, rows)
            module, end = _module_of(layer)
            modules.setdefault(module, {}).setdefault(end, replace(span, rows=own, turned=clip.turned))
        return
    for weight in _ENDS:
        if name.endswith(weight):
            modules.setdefault(name.removesuffix(weight), {}).setdefault("", span)
    if name.endswith(".bias"):
        modules.setdefault(name.removesuffix(".bias"), {}).setdefault(".bias", span)
    elif not name.endswith(".weight"):
        modules.setdefault(name, {}).setdefault("", span)  # a parameter without a module of its own


def _module_of(layer: str) -> tuple[str, str]:
    return (layer.removesuffix(".bias"), ".bias") if layer.endswith(".bias") else (layer, "")


def _of_versions(modules: Stored) -> dict[tuple[str, str], Spans]:
    """The modules of a language model, whatever version of transformers named them."""
    found: dict[tuple[str, str], Spans] = {}
    twice = set[tuple[str, str]]()
    for module, ends in modules.items():
        for end, span in ends.items():
            if (parts := split_wrappers(module + end)) is not None:
                key = parts[0], parts[2]
                if found.setdefault(key, (span,)) != (span,):
                    twice.add(key)
    return {key: spans for key, spans in found.items() if key not in twice}
