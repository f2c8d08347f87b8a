"""Prompts that name two LoRAs each, made from those of each LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, zip_longest

MOST_TOGETHER = 16  # prompts; more teach little that is new, and take time


def join_pairs(prompts: Sequence[Sequence[str]]) -> list[tuple[tuple[int, int], str]]:
    """Return up to ``MOST_TOGETHER`` prompts of two LoRAs each, and the places of the two.

    The first prompt of one is joined with the first of the other, the second with the second, and so on.
    Where there are too many, they are chosen evenly.

    >>> join_pairs([["mia"], ["ink fox", "ink tree"]])
    [((0, 1), 'mia, ink fox'), ((0, 1), 'mia, ink tree')]
    """
    joined = [
        (pair, f"{a or prompts[pair[0]][0]}, {b or prompts[pair[1]][0]}")
        for pair in combinations(range(len(prompts)), 2)
        for a, b in zip_longest(prompts[pair[0]], prompts[pair[1]])
    ]
    chosen = range(len(joined)) if len(joined) <= MOST_TOGETHER else _spread(len(joined), MOST_TOGETHER)
    return [joined[place] for place in chosen]


def _spread(count: int, most: int) -> list[int]:
    return [place * count // most for place in range(most)]
