"""Errors against float64: Frobenius errors, and for random types the fraction that was kept."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from merge_ops import Lora, Merged
from merge_ops.merging import merge

from . import reference
from .inputs import DENSITY, RANK

Pair = tuple[Tensor, Tensor]


def relative_difference(result: Pair, wanted: Pair) -> float:
    """Return ``|up @ down - wanted| / |wanted|``, both multiplied in float64."""
    exact = wanted[0] @ wanted[1]
    difference = result[0].double() @ result[1].double() - exact
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(exact))


def least_error(delta: Tensor, rank: int = RANK) -> float:
    """Return the Frobenius error of the best matrix of that rank, from the eigenvalues of the Gram matrix."""
    gram = delta @ delta.T if delta.shape[0] < delta.shape[1] else delta.T @ delta
    return math.sqrt(float(torch.linalg.eigvalsh(gram)[:-rank].clamp(min=0).sum()))


def excess(result: Pair, delta: Tensor, least: float) -> float:
    """Return by what fraction the error of a truncation exceeds the least possible error."""
    error = float(torch.linalg.vector_norm(delta - result[0].double() @ result[1].double()))
    return error / least - 1


def merged_delta(combination_type: str, loras: list[Lora], weights: list[float], name: str) -> Tensor:
    """Return the delta in float64 that our result is a truncation of."""
    if not combination_type.startswith("dare"):
        return reference.delta(combination_type, [lora.layers[name] for lora in loras], weights)
    # the same seed gives the same masks whether or not an SVD follows
    method = combination_type.removesuffix("_svd")
    return merge(loras, weights, method=method, density=DENSITY).delta(name).double()


def kept_fraction(pairs: Iterable[Pair], n: int) -> tuple[float, float]:
    """Return the density estimated from the non-zero entries, and its error in standard deviations.

    An entry of the result is zero where all ``n`` LoRAs dropped theirs.
    """
    entries = nonzero = 0
    for pair in pairs:
        for tensor in pair:
            entries += tensor.numel()
            nonzero += int(torch.count_nonzero(tensor))
    share, expected = nonzero / entries, 1 - (1 - DENSITY) ** n
    deviation = (share - expected) / math.sqrt(expected * (1 - expected) / entries)
    return 1 - (1 - share) ** (1 / n), deviation


def bit_equal(one: Merged, other: Merged, names: Iterable[str]) -> bool:
    """Return True if two results are equal bit for bit."""
    pairs = ((one.factors(name), other.factors(name)) for name in names)
    return all(a is not None and b is not None and all(map(torch.equal, a, b)) for a, b in pairs)
