"""What an extraction found: how much of the difference its layers hold, and what is not in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_NAMED = 3  # names in a line


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """One layer: its rank, the share of its difference that it holds, and its share of all differences.

    Shares are of the squared Frobenius norm. The rank of a bias or of a norm's weight is 0.
    """

    name: str
    rank: int
    held: float
    share: float


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The layers of an extraction, and why other weights of the two models are not among them.

    ``held`` is the share of the whole difference that the layers hold. ``same`` are weights that are equal
    in both models, ``ignored`` those whose difference is too small to count, with the reason; ``left_out``
    are differences that are not in the LoRA, with the reason, and ``lost`` their share of the whole as far
    as it is known. ``spectra`` are the squared singular values of some layers, for layers that were
    truncated.
    """

    layers: tuple[FoundLayer, ...]
    held: float
    same: tuple[str, ...] = ()
    ignored: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    lost: float = 0.0
    notes: tuple[str, ...] = ()
    spectra: tuple[Tensor, ...] = ()

    @property
    def ranks(self) -> tuple[int, int]:
        """The smallest and the largest rank of a layer; 0 and 0 if there are only biases and norms."""
        ranks = [layer.rank for layer in self.layers if layer.rank]
        return (min(ranks), max(ranks)) if ranks else (0, 0)

    @property
    def worst(self) -> list[FoundLayer]:
        """The layers that lose most of the whole difference, the first one most; at most three."""
        losing = [layer for layer in self.layers if layer.held < 0.9995]
        return sorted(losing, key=lambda layer: -layer.share * (1 - layer.held))[:_NAMED]

    def lines(self) -> list[str]:
        """Return sentences on what is in the LoRA and what is not, most important first."""
        lines = []
        if self.worst:
            told = (f"{each.name} ({each.held:.0%} at rank {each.rank})" for each in self.worst)
            lines.append(f"what it loses is mostly in {', '.join(told)}")
        if self.same:
            lines.append(f"{_weights(self.same)} the same in both models, and not in the LoRA")
        lines += [f"not in the LoRA: {_weights(names)}: {why}" for why, names in _by_reason(self.ignored)]
        return [*lines, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as plain values, for JSON."""
        return {
            "held": self.held,
            "lost": self.lost,
            "layers": [
                {"name": each.name, "rank": each.rank, "held": each.held, "share": each.share}
                for each in self.layers
            ],
            "same": list(self.same),
            "ignored": self.ignored,
            "left_out": self.left_out,
            "notes": list(self.notes),
        }


def warnings_of(left_out: dict[str, str], lost: dict[str, float], whole: float) -> list[str]:
    """Return a sentence for each reason why differences are left out, with their share where it is known."""
    lines = []
    for why, names in _by_reason(left_out):
        share = sum(lost.get(name, 0.0) for name in names) / whole if whole else 0.0
        known = f" ({100 * share:.2g} % of the difference)" if any(name in lost for name in names) else ""
        lines.append(f"left out {_listed(names)}{known}: {why}")
    return lines


def _by_reason(reasons: dict[str, str]) -> list[tuple[str, list[str]]]:
    grouped: dict[str, list[str]] = {}
    for name, why in reasons.items():
        grouped.setdefault(why, []).append(name)
    return list(grouped.items())


def _weights(names: tuple[str, ...] | list[str]) -> str:
    return f"{len(names)} weights are" if len(names) > 1 else f"{names[0]} is"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
