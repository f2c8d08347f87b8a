"""How much of each LoRA a merge keeps, measured on the held-out calls of a recording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import ParameterError
from ..merging.merged import Merged
from .host import Host
from .recording import Recording
from .samples import KEEP, TOGETHER, Batch, Role, Sample, batches

BATCH = 16  # samples that are replayed at once when nothing is trained


@dataclass(frozen=True, slots=True)
class Retention:
    """What a merge keeps, on calls that nothing was learned from.

    ``loras`` is by label: 1 means that the merge answers as the LoRA alone does, 0 that it is no closer to it
    than the base model, and below 0 it is further away. ``keep`` and ``together`` are the squared change to
    the calls that are to stay, and to those of the linear merge, relative to what the LoRAs change on
    average; None where nothing was recorded. ``modules`` has the shares of every module; ``loras`` is that of
    the first one recorded.
    """

    loras: dict[str, float]
    keep: float | None
    together: float | None
    modules: dict[str, dict[str, float]]

    @property
    def worst(self) -> float:
        """The smallest share of any LoRA."""
        return min(self.loras.values())

    @property
    def mean(self) -> float:
        """The mean share."""
        return sum(self.loras.values()) / len(self.loras)


def retention(recording: Recording, host: Host, merged: Merged | None) -> Retention:
    """Measure how much of each LoRA a merge keeps: ``1 - |f_merged - f_lora|^2 / |f_base - f_lora|^2``.

    Sums run over the held-out calls of a LoRA. The figure ranks the methods and settings for one set of LoRAs
    only roughly: on the project's own benchmark its rank correlation with a judge of images is about .6.

    Args:
        recording: of the LoRAs that were merged, with this base model.
        host: the base model.
        merged: any merge of them, by any method; None measures the base model itself.

    Raises:
        IncompatibleLoraError: if the recording was made with another base model.
        ParameterError: if no call was held out.
    """
    recording.check(host)
    with host.applied(merged), torch.no_grad():
        return measured(recording, host)


def measured(recording: Recording, host: Host, module: str | None = None) -> Retention:
    """Measure whatever the host's modules, or one of them, compute at the moment; see ``retention``."""
    samples = recording.part(module, held_out=True)
    if not any(isinstance(sample.role, int) for sample in samples):
        raise ParameterError(
            "the recording has no calls held out, so nothing can be measured on it; record more steps or "
            "prompts"
        )
    errors: dict[tuple[str, Role], float] = defaultdict(float)
    for sample, error in zip(samples, squared_errors(host, samples), strict=True):
        errors[sample.module, sample.role] += error
    return summed_up(recording, host, samples, errors)


def summed_up(
    recording: Recording, host: Host, samples: Sequence[Sample], errors: dict[tuple[str, Role], float]
) -> Retention:
    """Return the retention that follows from the squared errors by module and role."""
    distances: dict[tuple[str, Role], float] = defaultdict(float)
    counts: dict[tuple[str, Role], int] = defaultdict(int)
    for sample in samples:
        distances[sample.module, sample.role] += sample.distance or 0.0
        counts[sample.module, sample.role] += 1
    modules = {
        name: {
            recording.labels[role]: _share(errors[name, role], distances[name, role])
            for module, role in counts
            if module == name and isinstance(role, int)
        }
        for name in dict.fromkeys([*host.modules, *(module for module, _ in counts)])
        if any(module == name and isinstance(role, int) for module, role in counts)
    }
    first = next(iter(modules))
    own = [key for key in counts if key[0] == first and isinstance(key[1], int)]
    typical = sum(distances[key] / counts[key] for key in own) / len(own)

    def change(role: str) -> float | None:
        key = first, role
        return errors[key] / counts[key] / typical if counts[key] and typical else None

    return Retention(modules[first], change(KEEP), change(TOGETHER), modules)


def squared_errors(host: Host, samples: Sequence[Sample], size: int = BATCH) -> list[float]:
    """Return the squared distance of the host's present answer to each sample from the recorded one."""
    found: dict[int, float] = {}
    for name in dict.fromkeys(sample.module for sample in samples):
        here = [(place, sample) for place, sample in enumerate(samples) if sample.module == name]
        places = {id(sample): place for place, sample in here}
        for batch in batches((sample for _, sample in here), host.device(name), size):
            apart = (answer(host, batch) - batch.output.to(torch.float32)).square().flatten(1).sum(dim=1)
            for sample, error in zip(batch.samples, apart.tolist(), strict=True):
                found[places[id(sample)]] = error
    return [found[place] for place in range(len(samples))]


def answer(host: Host, batch: Batch) -> Tensor:
    """Return what the host answers to a batch, ``(batch, ...)`` in float32."""
    output = host.call(batch.module, batch.args, batch.kwargs)
    return host.output(batch.module, output, batch.args, batch.kwargs).to(torch.float32)


def add_distances(recording: Recording, host: Host) -> Recording:
    """Return the recording with the base model's distance on every held-out call of a LoRA."""
    samples = [sample for sample in recording.samples if sample.is_held_out and sample.role != KEEP]
    with host.applied(None), torch.no_grad():
        distances = {id(s): d for s, d in zip(samples, squared_errors(host, samples), strict=True)}
    return replace(
        recording,
        samples=tuple(
            replace(sample, distance=distances[id(sample)]) if id(sample) in distances else sample
            for sample in recording.samples
        ),
    )


def best_scale(
    recording: Recording, host: Host, merge_at: Callable[[float], Merged], scales: Iterable[float]
) -> tuple[float, dict[float, Retention]]:
    """Return the scale at which a merge keeps most, by mean retention, and the retention at each scale.

    Args:
        recording: of the LoRAs.
        host: the base model.
        merge_at: returns the merge at a scale.
        scales: what to try.
    """
    tried = {scale: retention(recording, host, merge_at(scale)) for scale in scales}
    if not tried:
        raise ParameterError("there is no scale to try")
    return max(tried, key=lambda scale: (tried[scale].mean, -abs(scale - 1))), tried


def _share(error: float, distance: float) -> float:
    """A LoRA that changes nothing is kept by whatever changes nothing."""
    if distance == 0:
        return 1.0 if error == 0 else -float("inf")
    return 1 - error / distance
