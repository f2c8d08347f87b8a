"""Slerp: from one LoRA to the next along the sphere, which keeps the size that a mean would lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .bases import gram_of_deltas, spread
from .registry import merge_method

if TYPE_CHECKING:
    from torch import Tensor

_STRAIGHT = 0.9995  # cosine from which on the way along the sphere is taken for straight


@merge_method(
    "slerp",
    "Slerp",
    paper="arXiv:2403.13257",
    kind="core",
    breaks={
        "order": "with three LoRAs or more, the way goes from the first to the second and on to the next",
        "weighting": "weights say where on the way the result lies",
    },
)
def slerp(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
) -> Tensor:  # K, (..., R, R)
    """Interpolate between the LoRAs along the sphere, by the share that each has in the weights.

    ``point_1 = deltas[0]``, and ``point_i`` lies on the way from ``point_(i - 1)`` to ``deltas[i]``, a share
    ``t = |w_i| / (|w_1| + ... + |w_i|)`` of it: ``sin((1 - t) a) / sin(a) * point + sin(t a) / sin(a) *
    deltas[i]``, with ``a`` the angle between the two, and straight where they are nearly parallel. A LoRA of
    negative weight counts as its negative. The last point, times the largest weight, is the merge: weights of
    (1 - t, t) give mergekit's ``slerp`` at t, up to that factor.
    """
    gram = gram_of_deltas(gram_up, gram_down, ranks)  # (..., n, n)
    signs, sizes = weights.to(gram).sign(), weights.to(gram).abs()
    shares = torch.zeros_like(gram[..., 0])  # of each delta in the point, (..., n)
    done = gram.new_zeros(())
    for i, size in enumerate(sizes):
        if not size:
            continue
        done = done + size
        step = torch.zeros_like(shares)
        step[..., i] = signs[i]
        shares = _between(shares, step, gram, size / done) if done > size else step
    return (spread(shares, ranks) * sizes.max()).diag_embed()


def _between(start: Tensor, end: Tensor, gram: Tensor, t: Tensor) -> Tensor:
    """The combination of deltas at a share t of the way between two combinations; ``(..., n)``."""
    square = [_inner(point, point, gram).clamp(min=0) for point in (start, end)]
    norm = (square[0] * square[1]).sqrt()
    cosine = torch.where(norm > 0, _inner(start, end, gram) / norm.clamp(min=1e-300), 0.0).clamp(-1, 1)
    angle = cosine.acos()
    straight = cosine.abs() > _STRAIGHT
    sine = torch.where(straight, 1.0, angle.sin())
    before = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine)
    after = torch.where(straight, t.expand_as(angle), (t * angle).sin() / sine)
    return before[..., None] * start + after[..., None] * end


def _inner(a: Tensor, b: Tensor, gram: Tensor) -> Tensor:
    return (a[..., None, :] @ gram @ b[..., :, None])[..., 0, 0]
