"""What PEFT documents, in float64 and as simple as possible; nothing is fast or shared with the library."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from merge_ops import LowRank

from .inputs import DENSITY


def trim(tensor: Tensor, density: float) -> Tensor:
    """Keep the ``int(density * numel)`` largest entries, and any that tie with the smallest of them."""
    kept = int(density * tensor.numel())
    limit = tensor.abs().flatten().kthvalue(tensor.numel() - kept + 1).values
    return torch.where(tensor.abs() >= limit, tensor, 0.0)


def combine(method: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
    """Merge float64 tensors by ``linear``, ``magnitude_prune`` or ``ties`` (voting by sum)."""
    if method != "linear":
        tensors = [trim(tensor, DENSITY) for tensor in tensors]
    if method != "ties":
        return sum((w * t for w, t in zip(weights, tensors, strict=True)), torch.zeros_like(tensors[0]))
    elected = torch.where(sum(tensors) >= 0, 1.0, -1.0).double()  # before weighting
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for weight, tensor in zip(weights, tensors, strict=True):
        agrees = tensor.sign() == elected
        total += torch.where(agrees, weight * tensor, 0.0)
        count += agrees
    return total / count.clamp(min=1.0)


def factors(combination_type: str, parts: list[LowRank], weights: list[float]) -> tuple[Tensor, Tensor]:
    """Return ``(up, down)`` of ``cat`` and of the deterministic types in factor space."""
    scaled = [weight * part.scale for weight, part in zip(weights, parts, strict=True)]
    ups, downs = [part.up.double() for part in parts], [part.down.double() for part in parts]
    if combination_type == "cat":
        return torch.cat(ups, dim=1), torch.cat([s * d for s, d in zip(scaled, downs, strict=True)])
    roots = [math.sqrt(abs(s)) for s in scaled]
    signed = [math.copysign(root, s) for root, s in zip(roots, scaled, strict=True)]
    return combine(combination_type, ups, roots), combine(combination_type, downs, signed)


def delta(combination_type: str, parts: list[LowRank], weights: list[float]) -> Tensor:
    """Return the merged full delta of the deterministic ``svd`` types, before the SVD."""
    method = "linear" if combination_type == "svd" else combination_type.removesuffix("_svd")
    return combine(method, [p.scale * (p.up.double() @ p.down.double()) for p in parts], weights)
