"""Weights of a model by the names of another layout: those of its authors, or those of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .header import torch_dtype
from .layer_index import LayerIndex, Span, Spans
from .quantised import Quantisation
from .shard import Shard
from .whole_model import FindByNames, ModelWeight, ReadRows

Files = Mapping[tuple[str, str], Quantisation]  # by the component and the name of each tensor


def find_relaid(shards: Sequence[Shard], files: Files) -> FindByNames:
    """Return what finds the weights of a model by the names that another model has for its own.

    A fused weight may be several tensors of the file, and a part of one a few of its rows.
    """

    def find(wanted: Mapping[str, ModelWeight]) -> dict[str, ModelWeight]:
        index = LayerIndex(shards)
        # the index calls the scale of a norm as a LoRA would: like its module
        spans = {
            name: index.find_fused(name.removesuffix(".scale"), weight.key.removesuffix(".scale"))
            for name, weight in wanted.items()
        }
        return {name: _weight(wanted[name], held, files) for name, held in spans.items() if held}

    return find


def open_span(stored: Quantisation, span: Span) -> Callable[[], ReadRows]:
    """Return what opens rows of a tensor: a function that returns one that reads some of them, with scale."""

    def opened() -> ReadRows:
        if span.turned:
            whole = stored.read(span.entry).T
            return lambda first, last: whole[first:last]
        start, length = span.rows or (0, span.entry.shape[0] if span.entry.shape else 1)
        return lambda first, last: stored.read(span.entry, start + first, start + min(last, length))

    return opened


def _weight(like: ModelWeight, spans: Spans, files: Files) -> ModelWeight:
    first = spans[0]
    shape = (sum(span.shape[0] for span in spans), *first.shape[1:]) if first.shape else ()
    parts = [open_span(files[span.component, span.entry.name], span) for span in spans]
    opened = parts[0] if len(parts) == 1 and not first.swapped else _join(parts, spans)
    return ModelWeight(shape, torch_dtype(first.entry), like.layout, like.key, opened, like.is_bare)


def _join(parts: Sequence[Callable[[], ReadRows]], spans: Spans) -> Callable[[], ReadRows]:
    def opened() -> ReadRows:
        whole = torch.cat([part()(0, span.shape[0]).float() for part, span in zip(parts, spans, strict=True)])
        if spans[0].swapped:
            whole = torch.cat(whole.chunk(2)[::-1])
        return lambda first, last: whole[first:last]

    return opened
