"""Tucker cores of convolutions, multiplied into a factor when a file is read, which is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from .module import RawModule, check_core, misfit


def fold_core(core: Tensor, up: Tensor, down: Tensor, module: RawModule) -> tuple[Tensor, Tensor]:
    """Return ``(up, down)`` of LyCORIS' factors with the core folded into ``down``.

    ``einsum("i j k l, j r, i p -> p r k l")`` as one product ``(p, i) @ (i, r * k * l)``.
    """
    if up.ndim != 2 or down.ndim != 2:
        raise misfit(module)
    check_core(module, core, up.shape[0], down.shape[0])
    folded = torch.einsum("ij...,jr->ir...", core.to(torch.float32), down.to(torch.float32))
    return up.to(torch.float32).T, folded.flatten(1)


def fold_mid(mid: Tensor, down: Tensor) -> Tensor:
    """Multiply a Tucker core ``(r, r, kh, kw)`` into down: ``(r, in * kh * kw)`` in float32, exact."""
    core = mid.to(torch.float32)
    return torch.einsum("ab...,bi->ai...", core, down.flatten(1).to(torch.float32)).flatten(1)
