"""Training the factors of one module so that it answers each recorded call as its teacher did."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MergeError
from .host import Host
from .measured import Retention, answer, measured
from .memory import Effort
from .recording import Recording
from .samples import Role, Sample, batches
from .student import Factors, Trainable, added

WARM_UP = 0.1  # share of the steps over which the learning rate rises
_MOST = 10.0  # times that the errors of a LoRA count more, or less, than those of a typical one
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
    notes: tuple[str, ...] = ()  # what was changed: to save memory, or the learning rate


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

    def marks(self) -> set[int]:
        """Return the steps after which the held-out calls are measured: once the rate is high, and evenly."""
        evenly = {round(self.steps * (i + 1) / _EVALUATIONS) for i in range(_EVALUATIONS)}
        return evenly | {math.ceil(WARM_UP * self.steps)}


def train(
    host: Host, recording: Recording, name: str, factors: Factors, places: Mapping[str, Trainable],
    schedule: Schedule, report: Report | None, stop: Callable[[], bool] | None,
) -> Best:  # fmt: skip
    """Train in place, and return what kept most; see ``distill`` for the errors."""
    samples = recording.part(name)
    says = _says(recording, name)
    optimizer = _Optimizer(factors, schedule, _scaler(host, name, samples))
    effort = Effort(host, name, places, schedule.batch)
    best = Best(factors.copied(), _look(host, recording, name, factors, places), 0)
    marks = schedule.marks()
    began = time.monotonic()
    with effort, torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for step, drawn in enumerate(_draws(samples, schedule), start=1):
            loss = effort.attempt(partial(_step, host, factors, places, drawn, says, optimizer.scaler))
            if not math.isfinite(loss):
                raise MergeError(
                    f"training diverged at step {step}: the loss is {loss}; try a lower learning rate"
                )
            optimizer.step(step)
            is_last = step == schedule.steps or (stop is not None and stop())
            seen = None
            if step in marks or is_last:
                seen = _look(host, recording, name, factors, places)
                if seen.mean > best.retention.mean:
                    best = Best(factors.copied(), seen, step)
                elif _is_lost(seen, best.retention) and not is_last:
                    factors.replace(best.pairs)
                    optimizer.slow_down(step, best.step)
            if report is not None:
                left = (time.monotonic() - began) / step * (schedule.steps - step)
                notes = effort.notes + optimizer.notes
                report(DistillProgress(name, step, schedule.steps, loss, seen, left, notes))
            if is_last:
                break
    return best


def _is_lost(seen: Retention, best: Retention) -> bool:
    """True if steps were so long that far less is kept than before, which more steps would hardly mend."""
    return 1 - seen.mean > 1.1 * (1 - best.mean) + 0.1


class _Optimizer:
    """Adam, whose steps do not follow the size of the gradients, at rates that follow that of each factor."""

    def __init__(self, factors: Factors, schedule: Schedule, scaler: torch.amp.GradScaler) -> None:
        sizes = [float(each.detach().square().mean().sqrt()) for each in factors.parameters()]
        least = 0.1 * sorted(sizes)[len(sizes) // 2]  # for a factor that begins at 0
        self._full = [schedule.learning_rate * max(size, least) for size in sizes]
        self._factors, self._schedule, self.scaler = factors, schedule, scaler
        self._share = 1.0
        self.notes: tuple[str, ...] = ()
        self._begin()

    def step(self, number: int) -> None:
        """Take step ``number``, from 1, with the gradients that were gathered."""
        for group, full in zip(self._adam.param_groups, self._full, strict=True):
            group["lr"] = full * self._share * self._schedule.rate(number - 1)
        self.scaler.step(self._adam)
        self.scaler.update()

    def slow_down(self, step: int, back_to: int) -> None:
        """Go on at a third of the rate, with nothing known of earlier gradients."""
        self._share /= 3
        self._begin()
        rate = self._schedule.learning_rate * self._share
        self.notes = (
            *self.notes,
            f"step {step}: less was kept than at step {back_to}, so training goes on from there at a "
            f"learning rate of {rate:.2g}",
        )

    def _begin(self) -> None:
        self._adam = torch.optim.Adam([{"params": [each]} for each in self._factors.parameters()])


def _step(
    host: Host, factors: Factors, places: Mapping[str, Trainable], drawn: list[Sample],
    says: Mapping[Role, float], scaler: torch.amp.GradScaler, size: int,
) -> float:  # fmt: skip
    """Gather the gradients of one batch, at most ``size`` samples at a time; return the mean loss."""
    factors.zero_grad()
    total = 0.0
    with torch.enable_grad(), added(factors, places):
        for batch in batches(drawn, host.device(drawn[0].module), size):
            wanted = batch.output.to(torch.float32)
            given = answer(host, batch)
            shares = torch.tensor([says.get(sample.role, 1.0) for sample in batch.samples])
            loss = (_LOSSES[host.loss](given, wanted) * shares.to(given.device)).sum() / len(drawn)
            torch.autograd.backward(scaler.scale(loss))
            total += float(loss.detach())
    return total


def _scaler(host: Host, name: str, samples: list[Sample]) -> torch.amp.GradScaler:
    """Scales the loss where half precision would round small gradients to 0; elsewhere it does nothing."""
    is_half = any(sample.output.dtype == torch.float16 for sample in samples)
    return torch.amp.GradScaler(host.device(name).type, enabled=is_half)


def _says(recording: Recording, name: str) -> dict[Role, float]:
    """How much an error counts: more for a LoRA that changes little, so that stronger ones do not drown it.

    The inverse of each LoRA's mean change (the root of its mean square) on the held-out calls, relative to
    the mean over all LoRAs. The inverse of the square, by which all shares would count the same, is worse for
    what one sees: the drawings of strong LoRAs suffer.
    """
    changes: dict[Role, list[float]] = {}
    for sample in recording.part(name, held_out=True):
        if isinstance(sample.role, int):
            changes.setdefault(sample.role, []).append(sample.distance or 0.0)
    means = {role: sum(own) / len(own) for role, own in changes.items()}
    typical = sum(means.values()) / max(1, len(means))
    says = {role: math.sqrt(typical / mean) if mean else 1.0 for role, mean in means.items()}
    return {role: min(max(share, 1 / _MOST), _MOST) for role, share in says.items()}


def _mean_squared(given: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each sample."""
    return (given - wanted).square().flatten(1).mean(dim=1)


def _divergence(given: Tensor, wanted: Tensor) -> Tensor:
    """The mean over the positions of each sample of the KL divergence from the wanted distribution."""
    ours, theirs = (F.log_softmax(each, dim=-1) for each in (given, wanted))
    apart = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)  # (batch, positions)
    return apart.flatten(1).mean(dim=1)


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


def _look(
    host: Host, recording: Recording, name: str, factors: Factors, places: Mapping[str, Trainable]
) -> Retention:
    with torch.no_grad(), added(factors, places):
        return measured(recording, host, name)
