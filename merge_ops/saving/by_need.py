"""Ranks by need for a file: which ranks a rule chooses, and what other files of the same merge would keep."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import ParameterError
from ..merging.merged import Merged
from ..merging.rank_rule import RankRule
from ..progress import Progress
from .layout import Layout, numbers
from .stems import stems_of
from .tensors import resolve_format

SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)  # of the energy, in the table


@dataclass(frozen=True, slots=True)
class SizeLine:
    """A file that a rule makes: the share of the energy that it keeps, its ranks, and its size in bytes."""

    energy: float
    smallest_rank: int
    largest_rank: int
    mean_rank: float
    size: int


@dataclass(frozen=True, slots=True)
class SizePlan:
    """``lines`` are files from small to large, and ``chosen`` is the one that was asked for, with its ranks.

    ``rule`` is what was asked for, with a size given as the energy that fits into it.
    """

    lines: tuple[SizeLine, ...]
    chosen: SizeLine | None
    rule: RankRule | None
    ranks: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        rule = None if self.rule is None else self.rule.to_dict()
        chosen = None if self.chosen is None else asdict(self.chosen)
        return {
            "lines": list(map(asdict, self.lines)), "chosen": chosen, "rule": rule, "ranks": dict(self.ranks),
        }  # fmt: skip


def plan_sizes(
    merged: Merged,
    rule: RankRule | None = None,
    path: str | os.PathLike[str] | None = None,
    format: str = "auto",
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> SizePlan:
    """Return how large files of a merge are at several shares of its energy, before anything is written.

    >>> from merge_ops.saving import plan_sizes
    >>> plan = plan_sizes(merged, merge_ops.RankRule(energy=0.9))
    >>> plan.chosen.energy >= 0.9
    True

    Args:
        merged: what ``merge`` returned.
        rule: the file that is wanted. Its limits, and whether it judges per layer, hold for all lines.
        path: of the file, whose name is in its metadata; the name of the first LoRA by default.
        format, dtype: as in ``save``.
        progress: called as ``progress(done, total, layer)`` while the singular values are measured.

    Raises:
        ParameterError: for a size that no file of this merge can have.
        MergeError: if the format cannot hold the layers, or one contains NaN.
    """
    form = resolve_format(format, merged.loras[0])
    stems = stems_of(merged, form)
    title = merged.loras[0].name if path is None else Path(path).stem
    layout = Layout(merged, form, dtype, stems, title)
    merged.spectra(progress)
    limits = (
        RankRule(energy=1.0)
        if rule is None
        else replace(rule, energy=1.0, ratio=None, cumulative=None, size=None)
    )
    lines = tuple(_line(layout, replace(limits, energy=share)) for share in SHARES)
    if rule is None:
        return SizePlan(lines, None, None, {})
    settled, ranks = settle_ranks(layout, rule)
    return SizePlan(lines, _line(layout, settled), settled, ranks)


def settle_ranks(
    layout: Layout, rule: RankRule, progress: Progress | None = None
) -> tuple[RankRule, dict[str, int]]:
    """Return the rule, with a size turned into the energy that fits into it, and the rank of each layer.

    Raises:
        ParameterError: for a size that is smaller than the file with rank 1 in every layer.
    """
    spectra = layout.merged.spectra(progress)
    if rule.size is None:
        return rule, spectra.ranks(rule)
    shares = spectra.shares(rule)

    def fits(index: int) -> int:
        """Negative or 0 if the file with this share fits."""
        wanted = replace(rule, size=None, energy=shares[index])
        return layout.size(spectra.ranks(wanted), wanted) - (rule.size or 0)

    if (over := fits(0)) > 0:
        least = rule.size + over
        raise ParameterError(
            f"{_megabytes(rule.size)} MB is too small: with rank 1 in every layer, the file has "
            f"{_megabytes(least)} MB ({least} bytes)"
        )
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) <= 0 else (low, middle)
    settled = replace(rule, size=None, energy=shares[low])
    return settled, spectra.ranks(settled)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.6f}".rstrip("0").rstrip(".")


def _line(layout: Layout, rule: RankRule) -> SizeLine:
    spectra = layout.merged.spectra()
    ranks = spectra.ranks(rule)
    return SizeLine(spectra.kept(ranks), *numbers(ranks), layout.size(ranks, rule))
