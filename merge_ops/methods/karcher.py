"""Karcher: the mean on the sphere, which has no first and no last LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch

from .bases import gram_of_deltas, spread
from .registry import Param, merge_method

if TYPE_CHECKING:
    from torch import Tensor


@merge_method(
    "karcher",
    "Karcher mean",
    paper="arXiv:2403.13257",
    kind="core",
    breaks={"weighting": "weights say how near to each LoRA the mean lies"},
)
def karcher(
    gram_up: Tensor,  # (..., R, R)
    gram_down: Tensor,  # (..., R, R)
    ranks: Sequence[int],
    weights: Tensor,  # (n,)
    *,
    iterations: Annotated[
        int,
        Param("At most this many steps towards the mean.", min=1, max=1000, step=1, advanced=True),
    ] = 20,
) -> Tensor:  # K, (..., R, R)
    """Take the mean direction of the LoRAs on the sphere, at the mean of their sizes.

    With ``u_i = deltas[i] / |deltas[i]|``, negative where the weight is, and ``a_i = |w_i| / sum |w|``, the
    mean u minimises ``sum_i a_i * angle(u, u_i)**2``: from the normalised sum on, each step goes from u along
    the mean of the ways to the u_i. The merge is ``u * sum_i a_i |deltas[i]| * max |w|``.
    """
    gram = gram_of_deltas(gram_up, gram_down, ranks)
    weights = weights.to(gram)
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()  # (..., n)
    live = (norms > 0) & (weights != 0)
    inverse = torch.where(live, weights.sign() / norms.clamp(min=1e-300), 0.0)
    sizes = torch.where(live, weights.abs(), 0.0)
    shares = sizes / sizes.sum(-1, keepdim=True).clamp(min=1e-300)
    cosines = inverse[..., :, None] * gram * inverse[..., None, :]  # of the u_i
    mean = _to_sphere(shares, cosines)
    for _ in range(iterations):
        towards = (cosines @ mean[..., None])[..., 0].clamp(-1, 1)
        angle = towards.acos()
        pull = shares * torch.where(angle > 1e-7, angle / angle.sin().clamp(min=1e-12), 1.0)
        way = pull - (pull * towards).sum(-1, keepdim=True) * mean  # tangent to the sphere at the mean
        length = _norm(way, cosines)
        moving = length > 1e-10  # layers that have arrived stay as they are, whatever they are merged with
        if not bool(moving.any()):
            break
        turn = torch.where(moving, length.sin() / length.clamp(min=1e-300), 0.0)
        mean = torch.where(moving, _to_sphere(length.cos() * mean + turn * way, cosines), mean)
    size = (shares * norms).sum(-1, keepdim=True) * weights.abs().max()
    return spread(mean * inverse * size, ranks).diag_embed()


def _to_sphere(point: Tensor, cosines: Tensor) -> Tensor:
    """The combination of the u_i scaled to length 1; the first LoRA where they cancel."""
    length = _norm(point, cosines)
    first = torch.zeros_like(point)
    first.scatter_(-1, (cosines.diagonal(dim1=-2, dim2=-1) > 0).to(torch.uint8).argmax(-1, keepdim=True), 1.0)
    return torch.where(length > 1e-9, point / length.clamp(min=1e-300), first)


def _norm(point: Tensor, cosines: Tensor) -> Tensor:
    return (point[..., None, :] @ cosines @ point[..., :, None])[..., 0].clamp(min=0).sqrt()
