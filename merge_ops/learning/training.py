"""Training the factors of one module so that it answers each recorded call as its teacher did."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .host import Host
from .measured import Retention, answer, measured
from .memory import Effort
from .recording import Recording
from .samples import Role, Sample, batches
from .student import Factors, Trainable, added

WARM_UP = 0.1  # share of the steps over which the learning rate rises
_EVALUATIONS = 5  # times that the held-out calls are measured during training


@dataclass(frozen=True, slots=True)
class DistillProgress:
    """Where training stands. ``retention`` is set at the steps at which it was measured."""

    module: str
    step: int
    steps: int
    loss: float
    retention: Retention | None
    seconds_left: float
    notes: tuple[str, ...] = ()  # what was changed to save memory


Report = Callable[[DistillProgress], None]


@dataclass(slots=True)
class Best:
    """The factors that kept most so far, by mean retention on held-out calls."""

    pairs: dict[str, tuple[Tensor, Tensor]]
    retention: Retention
    step: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn. Learning rates are relative to the size of each factor's entries."""

    steps: int
    learning_rate: float
    batch: int
    seed: int

    def rate(self, step: int) -> float:
        """Return the share of the learning rate at a step: a linear rise, then half a cosine."""
        rise = max(1, round(WARM_UP * self.steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


def train(
    host: Host, recording: Recording, name: str, factors: Factors, places: Mapping[str, Trainable],
    schedule: Schedule, report: Report | None, stop: Callable[[], bool] | None,
) -> Best:  # fmt: skip
    """Train in place, and return what kept most; see ``distill`` for the errors."""
    samples = recording.part(name)
    optimizer = _optimizer(factors, schedule)
    effort = Effort(host, name, places, schedule.batch)
    best = Best(factors.copied(), _look(host, recording, factors, places), 0)
    marks = {round(schedule.steps * (i + 1) / _EVALUATIONS) for i in range(_EVALUATIONS)}
    began = time.monotonic()
    with effort:
        for step, drawn in enumerate(_draws(samples, schedule), start=1):
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * schedule.rate(step - 1)
            loss = effort.attempt(lambda size, drawn=drawn: _step(host, factors, places, drawn, size))  # type: ignore[misc]
            optimizer.step()
            optimizer.zero_grad()
            is_last = step == schedule.steps or (stop is not None and stop())
            seen = None
            if step in marks or is_last:
                seen = _look(host, recording, factors, places)
                if seen.modules[name] and _mean(seen, name) > _mean(best.retention, name):
                    best = Best(factors.copied(), seen, step)
            if report is not None:
                left = (time.monotonic() - began) / step * (schedule.steps - step)
                report(DistillProgress(name, step, schedule.steps, loss, seen, left, effort.notes))
            if is_last:
                break
    return best


def _step(
    host: Host, factors: Factors, places: Mapping[str, Trainable], drawn: list[Sample], size: int
) -> float:
    """Gather the gradients of one batch, at most ``size`` samples at a time; return the mean loss."""
    factors.zero_grad()
    total = 0.0
    with torch.enable_grad(), added(factors, places):
        for batch in batches(drawn, host.device(drawn[0].module), size):
            wanted = batch.output.to(torch.float32)
            given = answer(host, batch)
            loss = _LOSSES[host.loss](given, wanted) * (len(batch.samples) / len(drawn))
            torch.autograd.backward(loss)
            total += float(loss.detach())
    return total


def _mean_squared(given: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(given, wanted)


def _divergence(given: Tensor, wanted: Tensor) -> Tensor:
    """The mean over all positions of the KL divergence of the given distribution from the wanted one."""
    ours, theirs = (F.log_softmax(each, dim=-1).flatten(0, -2) for each in (given, wanted))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


_LOSSES = {"mse": _mean_squared, "kl": _divergence}


def _draws(samples: list[Sample], schedule: Schedule) -> Iterator[list[Sample]]:
    """Yield the samples of each step: every role in turn, and within a role all before any comes again."""
    generator = torch.Generator().manual_seed(schedule.seed)
    roles: dict[Role, list[Sample]] = {}
    for sample in samples:
        roles.setdefault(sample.role, []).append(sample)
    streams = [_shuffled(own, generator) for own in roles.values()]
    turn = 0
    for _ in range(schedule.steps):
        drawn = []
        for _ in range(schedule.batch):
            drawn.append(next(streams[turn % len(streams)]))
            turn += 1
        yield drawn


def _shuffled(samples: list[Sample], generator: torch.Generator) -> Iterator[Sample]:
    while True:
        for place in torch.randperm(len(samples), generator=generator).tolist():
            yield samples[place]


def _optimizer(factors: Factors, schedule: Schedule) -> torch.optim.Adam:
    """Adam at rates that follow the size of each factor, as its steps do not follow that of the gradients."""
    sizes = [float(each.detach().square().mean().sqrt()) for each in factors.parameters()]
    least = 0.1 * sorted(sizes)[len(sizes) // 2]  # for a factor that begins at 0
    groups = [
        {"params": [each], "full": schedule.learning_rate * max(size, least)}
        for each, size in zip(factors.parameters(), sizes, strict=True)
    ]
    return torch.optim.Adam(groups, lr=schedule.learning_rate)


def _look(host: Host, recording: Recording, factors: Factors, places: Mapping[str, Trainable]) -> Retention:
    with torch.no_grad(), added(factors, places):
        return measured(recording, host)


def _mean(seen: Retention, name: str) -> float:
    shares = seen.modules[name].values()
    return sum(shares) / len(shares)
