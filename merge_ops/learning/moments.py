"""Second moments of what each LoRA's layers see, gathered in one pass over a recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..lora import Lora
from ..merging.cores import stacked_factors
from ..merging.merge import carry_out
from ..merging.merged import Merged
from .host import Host
from .measured import BATCH
from .record import alone
from .recording import Recording
from .samples import Sample, batches
from .student import Trainable, trainable


@dataclass(slots=True, eq=False)
class _Layer:
    """A layer whose inputs are seen."""

    place: Trainable
    down: Tensor  # (R, in), the downs of its LoRAs, stacked
    ranks: tuple[int, ...]  # of each part
    parts: Mapping[int, int]  # LoRA of the recording -> part of the layer
    sums: Tensor  # (n, R, R), float32, on the CPU


def moments(recording: Recording, host: Host, loras: Sequence[Lora]) -> dict[str, Tensor]:
    """Return, for each layer, the second moments ``(n, R, R)`` of its stacked downs' outputs, float32.

    Entry ``i`` is the sum of ``z z^T``, with ``z = down @ x``, over all calls and positions where the LoRA of
    part ``i`` runs alone on its own recorded calls; ``down (R, in)`` stacks the downs of the layer's LoRAs.
    Calls that were held out are not used. Layers whose inputs are not seen (a norm, a layer that the model
    does not have, a module without calls) are missing in the result, and are added up by ``calibrated``.

    Raises:
        IncompatibleLoraError: if the recording is of other LoRAs, or was made with another base model.
    """
    recording.check(host)
    loras = recording.match(loras)
    request = recording.request(loras)
    linear = carry_out(request, loras, host.base)
    layers = {name: layer for name in linear.layers if (layer := _seen(host, linear, name)) is not None}
    for index in range(len(loras)):
        samples = recording.part(role=index)
        mine = [layer for layer in layers.values() if index in layer.parts]
        with host.applied(alone(host, loras, request, index)), torch.no_grad(), _watched(mine, index):
            _replay(host, samples)
    for layer in layers.values():
        _fill_in(layer)
    return {name: layer.sums for name, layer in layers.items()}


def _seen(host: Host, merged: Merged, name: str) -> _Layer | None:
    """The layer, if its module's inputs can be multiplied by the stacked downs."""
    layer = merged.layers[name]
    place = trainable(host, name, layer.template)
    module = host.module_of(name)
    if place is None or module is None or place.outputs_of_down is None:
        return None
    device = host.device(module)
    _, down, ranks = stacked_factors(layer.aligned, device)
    parts = {index: part for part, index in enumerate(layer.aligned.indices)}
    return _Layer(place, down, ranks, parts, torch.zeros((len(ranks), len(down), len(down))))


@contextmanager
def _watched(layers: Sequence[_Layer], index: int) -> Iterator[None]:
    """Add up the moments of one LoRA's parts while its calls are replayed."""
    hooks = [layer.place.site.module.register_forward_hook(_hook(layer, index)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(layer: _Layer, index: int) -> Any:
    outputs_of_down = layer.place.outputs_of_down
    assert outputs_of_down is not None

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        seen = outputs_of_down(args[0], layer.down)  # (positions, R)
        layer.sums[layer.parts[index]] += (seen.T @ seen).cpu()

    return add


def _replay(host: Host, samples: Sequence[Sample]) -> None:
    for name in dict.fromkeys(sample.module for sample in samples):
        here = (sample for sample in samples if sample.module == name)
        for batch in batches(here, host.device(name), BATCH):
            host.call(name, batch.args, batch.kwargs)


def _fill_in(layer: _Layer) -> None:
    """A part whose LoRA was not seen in the layer counts with its own components alone."""
    start = 0
    for part, rank in enumerate(layer.ranks):
        if not bool(layer.sums[part].any()):
            own = torch.arange(start, start + rank)
            layer.sums[part, own, own] = 1.0
        start += rank
