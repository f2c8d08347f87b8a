"""Ranks by need: a rule that says which singular values of each layer are kept."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import ParameterError, did_you_mean, shown

_CRITERIA = ("energy", "ratio", "cumulative", "size")
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MOST = {"ratio": 10**12, "size": 2**62, "limit": 2**31, "conv_limit": 2**31}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRule:
    """Which singular values the layers keep, the largest first; every layer keeps at least one.

    At most one criterion is given:

    - ``energy``: the share of the energy to keep, above 0 and up to 1. Energy is the squared Frobenius norm
      of the deltas, so 0.95 leaves a relative error of ``sqrt(0.05)``. Over the whole file, the singular
      values with the most energy per byte are kept, so that no other choice of this size keeps more.
    - ``ratio``: keep singular values larger than the largest one divided by this.
    - ``size``: the largest file in bytes, in which as much energy is kept as fits. ``parse_size`` reads
      ``50MB``.
    - ``cumulative``: the share of the sum of the singular values to keep, of each layer for itself.

    With ``per_layer``, each layer is judged by its own singular values: it keeps this share of its own
    energy, its ratio is to its own largest value, and a size is filled with the largest share that all
    layers can keep. ``limit`` is the largest rank, and ``conv_limit`` that of convolutions (``limit`` by
    default).

    kohya's ``resize_lora.py`` judges per layer: its ``sv_ratio`` is ``ratio``, its ``sv_cumulative`` is
    ``cumulative``, and its ``sv_fro`` of p is an ``energy`` of p squared. What it cuts to rank 1 because no
    singular value is above 1e-6 is treated as any other layer here.

    >>> rule = merge_ops.RankRule(energy=0.9, per_layer=True, limit=16)
    >>> saved = merge_ops.save(merged, "by_need.safetensors", rank=rule)
    >>> min(layer.energy_kept for layer in saved.layers) >= 0.9
    True

    Raises:
        ParameterError: on creation, for a value that is not allowed.
    """

    energy: float | None = None
    ratio: float | None = None
    cumulative: float | None = None
    size: int | None = None
    per_layer: bool = False
    limit: int | None = None
    conv_limit: int | None = None

    def __post_init__(self) -> None:
        given = [name for name in _CRITERIA if getattr(self, name) is not None]
        if len(given) > 1:
            raise ParameterError(f"give one of {' and '.join(given)}, not both")
        if not given and self.limit is None and self.conv_limit is None:
            raise ParameterError("a RankRule needs energy, ratio, cumulative, size or a limit")
        for name in ("energy", "cumulative"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value <= 1):
                raise ParameterError(f"{name} is a share above 0 and up to 1, not {shown(value)}")
        for name, most in _MOST.items():
            value = getattr(self, name)
            right = _is_number(value) if name == "ratio" else type(value) is int
            if value is not None and not (right and 1 <= value <= most):
                kind = "a number" if name == "ratio" else "a whole number"
                raise ParameterError(f"{name} must be {kind} from 1 to {most}, not {shown(value)}")
        if type(self.per_layer) is not bool:
            raise ParameterError(f"per_layer is true or false, not {shown(self.per_layer)}")
        if self.cumulative is not None and not self.per_layer:
            raise ParameterError("cumulative is a share of each layer's own sum; it needs per_layer=True")

    def largest(self, is_conv: bool) -> int | None:
        """Return the largest rank of a layer; None where there is no limit."""
        return self.limit if self.conv_limit is None or not is_conv else self.conv_limit

    def to_dict(self) -> dict[str, Any]:
        """Return what is set, as plain values."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}

    @classmethod
    def parse(cls, given: Any) -> RankRule:
        """Read what ``to_dict`` returns.

        Raises:
            ParameterError: for anything else.
        """
        known = [each.name for each in fields(cls)]
        if not isinstance(given, dict):
            raise ParameterError(f"ranks must be an object with {', '.join(known)}")
        for name in given:
            if name not in known:
                raise ParameterError(f"ranks has no key {name!r}{did_you_mean(str(name), known)}")
        return cls(**given)

    def __str__(self) -> str:
        parts = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in ((name, getattr(self, name)) for name in _CRITERIA)
            if value is not None
        ]
        parts += ["per layer"] if self.per_layer else []
        parts += [f"rank up to {self.limit}"] if self.limit is not None else []
        parts += [f"convolutions up to {self.conv_limit}"] if self.conv_limit is not None else []
        return ", ".join(parts)


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``50MB`` or ``47.5 MiB``: 1 MB is 1,000,000 bytes, 1 MiB is 1024².

    >>> from merge_ops.merging.rank_rule import parse_size
    >>> parse_size("50MB"), parse_size("1.5 MiB")
    (50000000, 1572864)

    Raises:
        ParameterError: for a text that is no size, or has no unit.
    """
    found = _SIZE.fullmatch(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ParameterError(f"{text!r} is no size; write it with its unit, as in 50MB or 48MiB")
    size = float(found[1]) * unit
    if not 1 <= size < 2**63:
        raise ParameterError(f"a size of {text} is out of range")
    return int(size)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
