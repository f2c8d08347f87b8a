"""The eleven combination types of PEFT, compared with PEFT itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from merge_ops import Lora
from merge_ops.merging import merge

from . import accuracy, reference
from .clock import alternate, cpu_seconds
from .inputs import DENSITY, RANK, fresh, make_loras, multipliers
from .peft_side import PeftSide, recorded
from .rows import FACTOR_TYPES, SVD_TYPES, Row, goal_against_peft
from .sdxl import Layer, one_per_shape

_ENOUGH = 3.0  # CPU seconds of PEFT on one shape, after which more repeats add little


def run_ours(loras: list[Lora], combination_type: str) -> list[Any]:
    """Merge and make the factors of every layer, so that nothing is left lazy."""
    merged = merge(
        loras, multipliers(len(loras)), combination_type=combination_type, density=DENSITY, svd_rank=RANK
    )
    return [merged.factors(name) for name in merged.layers]


def _shapes(layers: list[Layer], largest: int | None) -> list[tuple[Layer, int]]:
    return [(x, c) for x, c in one_per_shape(layers) if largest is None or x.rows * x.columns <= largest]


def factor_rows(
    layers: list[Layer], n: int, types: Sequence[str], repeats: int, largest: int | None = None
) -> Iterator[Row]:
    """Time ``cat`` and the factor-space types on all given layers; errors of shapes up to ``largest``."""
    wanted = [t for t in FACTOR_TYPES if t in types]
    if not wanted:
        return
    loras, weights = make_loras(layers, n), multipliers(n)
    side = PeftSide(loras)
    sample = [f"unet.{layer.name}" for layer, _ in _shapes(layers, largest)]
    for combination_type in wanted:
        side.merge(combination_type, weights)  # one uncounted call: first calls load code and grow the heap
        run_ours(loras, combination_type)
        row = Row("PEFT", combination_type, n, goal=goal_against_peft(combination_type, n))
        _judge_factors(row, loras, side, sample)
        side.drop()
        timing = alternate(
            lambda t=combination_type: side.merge(t, weights),
            lambda t=combination_type: run_ours(loras, t),
            repeats,
            after=side.drop,
        )
        row.theirs, row.ours, row.ratio = timing.theirs, timing.ours, timing.ratio
        yield row


def _judge_factors(row: Row, loras: list[Lora], side: PeftSide, sample: list[str]) -> None:
    weights = multipliers(row.n)
    merged, again = (
        merge(loras, weights, combination_type=row.method, density=DENSITY, seed=1) for _ in range(2)
    )
    ours = {name: merged.factors(name) for name in sample}
    theirs = {name: side.merged(name) for name in sample}
    if row.method.startswith("dare"):
        kept, deviation = accuracy.kept_fraction(ours.values(), row.n)
        their_kept, _ = accuracy.kept_fraction(theirs.values(), row.n)
        row.error, row.their_error = abs(kept - DENSITY), abs(their_kept - DENSITY)
        same = "bit-equal" if accuracy.bit_equal(merged, again, sample) else "DIFFERENT"
        row.add_note(f"{deviation:+.1f} sigma; two runs {same}")
        return
    errors = defaultdict(list)
    for name in sample:
        wanted = reference.factors(row.method, [lora.layers[name] for lora in loras], weights)
        errors["ours"].append(accuracy.relative_difference(ours[name], wanted))
        errors["theirs"].append(accuracy.relative_difference(theirs[name], wanted))
    row.error, row.their_error = max(errors["ours"]), max(errors["theirs"])


@dataclass
class _Sums:
    """Totals over the shapes, each multiplied by its number of layers."""

    theirs: float = 0.0
    ours: float = 0.0
    held: float = 0.0
    error: list[float] = field(default_factory=list)
    their_error: list[float] = field(default_factory=list)


def svd_rows(
    layers: list[Layer], n: int, types: Sequence[str], repeats: int, largest: int | None = None
) -> Iterator[Row]:
    """Time the SVD types: one layer of each shape up to ``largest`` weights, times its number of layers."""
    wanted = [t for t in SVD_TYPES if t in types]
    shapes = _shapes(layers, largest)
    if not wanted:
        return
    sums: dict[str, _Sums] = {t: _Sums() for t in wanted}
    for layer, count in shapes:
        loras = make_loras([layer], n)
        side = PeftSide(loras)
        for combination_type in wanted:
            _time_shape(sums[combination_type], combination_type, loras, side, count, repeats)
    covered = sum(count for _, count in shapes)
    for combination_type, total in sums.items():
        row = Row("PEFT", combination_type, n, total.theirs, total.ours, total.theirs / total.ours)
        row.goal, row.extrapolated = goal_against_peft(combination_type, n), True
        row.error, row.their_error = max(total.error), max(total.their_error)
        if largest is None:
            row.add_note(f"PEFT's result holds {total.held / 1e9:.1f} GB (x)")
        else:
            row.add_note(f"{len(shapes)} smaller shapes only, {covered} layers")
        yield row


def _time_shape(
    sums: _Sums, combination_type: str, loras: list[Lora], side: PeftSide, count: int, repeats: int
) -> None:
    weights = multipliers(len(loras))
    (name,) = loras[0].layers
    run_ours(loras, combination_type)
    rounds: list[tuple[float, float]] = []
    with recorded(combination_type) as full:
        while len(rounds) < repeats and sum(theirs for theirs, _ in rounds) < _ENOUGH:
            side.drop()
            theirs = cpu_seconds(lambda: side.merge(combination_type, weights))
            # new objects each time, because thresholds are cached per LoRA
            rounds.append((theirs, cpu_seconds(lambda: run_ours(fresh(loras), combination_type), 0.1)))
    sums.theirs += count * median(a for a, _ in rounds)
    sums.ours += count * median(b for _, b in rounds)
    sums.held += count * side.held_bytes(name)
    delta = accuracy.merged_delta(combination_type, loras, weights, name)
    least = accuracy.least_error(delta)
    sums.error.append(accuracy.excess(run_ours(loras, combination_type)[0], delta, least))
    if full:
        delta = full[0].double()
        least = accuracy.least_error(delta)
    sums.their_error.append(accuracy.excess(side.merged(name), delta, least))
    side.drop()
