"""What is asked of an extraction: one record, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ParameterError

RANK = 32  # where neither a rank nor a share of the energy is given


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How a difference is brought to a low rank; see ``extract``.

    Raises:
        ParameterError: for a value that is not allowed.
    """

    rank: int | None = None
    energy: float | None = None
    conv_rank: int | None = None
    min_diff: float = 0.0
    clamp: float | None = None
    vectors: bool = True

    def __post_init__(self) -> None:
        for what, rank in (("rank", self.rank), ("conv_rank", self.conv_rank)):
            if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
                raise ParameterError(f"{what} must be a whole number of 1 or more, not {rank!r}")
        for what, share in (("energy", self.energy), ("clamp", self.clamp)):
            if share is not None and not 0 < share <= 1:
                raise ParameterError(f"{what} is a share, above 0 and at most 1, not {share!r}")
        if not 0 <= self.min_diff < float("inf"):
            raise ParameterError(f"min_diff must be a number of 0 or more, not {self.min_diff!r}")
        if self.rank is None and self.energy is None:
            object.__setattr__(self, "rank", RANK)

    def rank_for(self, kernel: tuple[int, ...]) -> int | None:
        """Return the largest rank of a layer; None if only its energy limits it."""
        is_wide = any(side > 1 for side in kernel)
        return self.conv_rank if is_wide and self.conv_rank is not None else self.rank

    def to_dict(self) -> dict[str, Any]:
        """Return the options that are set, as plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}
