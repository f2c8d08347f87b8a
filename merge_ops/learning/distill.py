"""Distilling: training the factors of a merge so that it answers as each LoRA's own model did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ParameterError, did_you_mean
from ..lora import Lora
from ..merging.align import AlignedLayer
from ..merging.merge import carry_out
from ..merging.merged import Merged
from ..merging.merged_layer import MergedLayer
from .calibrate import calibrate
from .defaults import LEARNING_RATE, STARTS, STEPS
from .host import Host
from .recording import Recording
from .student import Factors, Trainable, starting_factors, trainable
from .training import Best, Report, Schedule, train

_BATCH = 48
_BATCH_ENTRIES = 1 << 18  # of a batch's outputs, by which the default batch is chosen
_LEAST_BATCH = 4


def distill(
    recording: Recording,
    host: Host,
    loras: Sequence[Lora],
    *,
    rank: int | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    batch: int | None = None,
    start: str = "calibrated",
    seed: int = 0,
    progress: Report | None = None,
    stop: Callable[[], bool] | None = None,
) -> Merged:
    """Train one low-rank merge to answer each recorded call as that LoRA's own model did.

    The calls to keep are to be answered as the base does, and those recorded together as the linear merge
    does. The base stays frozen: the factors of the merge act through forward hooks, so that no weight is
    written. This is distillation (Hinton et al., arXiv:1503.02531) with several teachers that differ from the
    student's base by a LoRA each. Gradient fusion (Mix-of-Show, arXiv:2305.18292) and IterIS
    (arXiv:2411.15231) fit each layer to the LoRAs' layer outputs, one by one; this fits the output of the
    whole model, and so needs no match inside it.

    >>> merged = merge_ops.learning.distill(recording, host, loras, rank=16)
    >>> merge_ops.learning.retention(recording, host, merged).mean

    Args:
        recording: of these LoRAs with this base model; their strengths are taken from it.
        host: the base model.
        loras: the LoRAs, in any order.
        rank: of every layer; None keeps the sum of the LoRAs' ranks.
        steps: of Adam, for each recorded module.
        learning_rate: relative to the size of the entries of each factor: .1 moves an entry by about 10 % of
            the typical size in a step.
        batch: samples a step; None chooses 48, fewer where they are large.
        start: ``calibrated`` or ``linear``: the merge that training begins with.
        seed: of the order in which samples are drawn. With the same seed, recording and device, the result is
            the same.
        progress: called with a ``DistillProgress`` after every step; an exception raised in it ends the
            training, and nothing is kept.
        stop: called after every step; where it returns True, training ends and the best so far is kept.

    Returns:
        The merge that kept most of the LoRAs on average, on calls that it did not learn from. Layers that
        cannot be trained (norms, layers that the model does not have) are as in the linear merge.

    Raises:
        ParameterError: for a setting that is not allowed.
        IncompatibleLoraError: if the recording is of other LoRAs, or was made with another base model.
        MergeError: if one sample does not fit into memory.
    """
    if start not in STARTS:
        raise ParameterError(f"unknown start {start!r}{did_you_mean(str(start), STARTS)}")
    for what, value in (("steps", steps), ("rank", rank), ("batch", batch)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ParameterError(f"{what} must be a whole number of 1 or more, not {value!r}")
    if not learning_rate > 0:
        raise ParameterError(f"learning_rate must be above 0, not {learning_rate!r}")
    recording.check(host)
    loras = recording.match(loras)
    linear = carry_out(recording.request(loras), loras, host.base)
    begin = calibrate(recording, host, loras) if start == "calibrated" else linear
    schedule = Schedule(steps, learning_rate, batch or _default_batch(recording), seed)
    places = _places(host, linear)
    results: dict[str, Best] = {}
    pairs = _starts(begin, [name for own in places.values() for name in own], rank, seed)
    rest = _without(linear, pairs)
    with host.applied(rest), host.training():
        for module, own in places.items():
            factors = Factors({name: pairs[name] for name in own}, host.device(module))
            results[module] = train(host, recording, module, factors, own, schedule, progress, stop)
            pairs |= results[module].pairs
    how = asdict(schedule) | {"rank": rank, "start": start}
    return _finished(linear, pairs, rank, _record(recording, how, results))


def _places(host: Host, merged: Merged) -> dict[str, dict[str, Trainable]]:
    """The layers that are trained, by recorded module."""
    places: dict[str, dict[str, Trainable]] = {name: {} for name in host.modules}
    for name, layer in merged.layers.items():
        module = host.module_of(name)
        place = trainable(host, name, layer.template)
        if module is not None and place is not None:
            places[module][name] = place
    places = {module: own for module, own in places.items() if own}
    if not places:
        raise ParameterError("the LoRAs have no layer that can be trained in the recorded modules")
    return places


def _starts(
    begin: Merged, names: Sequence[str], rank: int | None, seed: int
) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    layers = begin.layers
    return {
        name: starting_factors(layers[name], rank or _sum_of_ranks(layers[name].aligned), generator)
        for name in names
    }


def _sum_of_ranks(aligned: AlignedLayer) -> int:
    return min(sum(aligned.ranks), *aligned.parts[0].matrix_shape)


def _without(merged: Merged, names: Mapping[str, Any]) -> Merged | None:
    """What is not trained: its layers and whole weights change the weights of the model; None if none is."""
    layers = {name: layer for name, layer in merged.layers.items() if name not in names}
    if not (layers or merged.whole_weights or merged.ia3):
        return None
    return Merged(merged.request, merged.loras, layers, merged.whole_weights, merged.ia3, None, torch.float32)


def _finished(
    linear: Merged, pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int | None, learned: dict[str, Any]
) -> Merged:
    """The trained factors as an ordinary low-rank merge."""
    layers: dict[str, MergedLayer] = {}
    for name, layer in linear.layers.items():
        if name in pairs:
            layers[name] = layer.pinned(*pairs[name], torch.float32)
        else:
            layers[name] = layer if rank is None else layer.truncated(rank, None, torch.float32)
    request = replace(linear.request, cut_to=rank, learned=learned)
    return Merged(request, linear.loras, layers, linear.whole_weights, linear.ia3, None, torch.float32)


def _record(recording: Recording, how: dict[str, Any], results: Mapping[str, Best]) -> dict[str, Any]:
    """What a recipe tells about the training, as plain data."""
    return {
        "recording": recording.sha256,
        "base": recording.base,
        "settings": how,
        "prompts": [list(lora.prompts) for lora in recording.loras],
        "keep": list(recording.keep_prompts),
        "together": list(recording.together_prompts),
        "retention": {module: best.retention.loras for module, best in results.items()},
        "best_step": {module: best.step for module, best in results.items()},
    }


def _default_batch(recording: Recording) -> int:
    largest = max(sample.output.numel() for sample in recording.samples)
    return max(_LEAST_BATCH, min(_BATCH, _BATCH_ENTRIES // largest))
