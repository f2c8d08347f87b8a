"""Weights of the epochs of a training by their age."""

from __future__ import annotations

from ..errors import ParameterError


def recency_weights(count: int, recency: float) -> list[float]:
    """Return a weight for each of ``count`` epochs, the oldest first: each counts ``recency`` of the next.

    ``weights[i] = count * recency ** (count - 1 - i) / sum_j recency ** (count - 1 - j)``. They add up to
    ``count``, so that ``mean``, which divides by it, gives their weighted average.

    >>> [round(weight, 3) for weight in merge_ops.recency_weights(3, 0.5)]
    [0.429, 0.857, 1.714]

    Raises:
        ParameterError: if ``recency`` is not above 0 and up to 1.
    """
    if isinstance(recency, bool) or not 0 < recency <= 1:
        raise ParameterError(f"recency is a share above 0 and up to 1, not {recency}")
    shares = [recency ** (count - 1 - place) for place in range(count)]
    whole = sum(shares)
    return [count * share / whole for share in shares]
