"""The student: a base model with low-rank factors that can be trained added to its modules' outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layer import Layer
from ..merging.merged_layer import MergedLayer
from .host import Host, Site

Update = Callable[[Tensor, Tensor, Tensor], Tensor]  # (input, up, down) -> what is added to the output
Outputs = Callable[[Tensor, Tensor], Tensor]  # (input, down) -> (positions, R)
_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True, slots=True, eq=False)
class Trainable:
    """A layer that can be trained: its site, and what its factors add to the output."""

    site: Site
    update: Update
    is_last: bool  # True if the features are the last dimension of the output, False for a convolution
    outputs_of_down: Outputs | None = None  # None where the module's input does not meet the downs


def trainable(host: Host, name: str, layer: Layer) -> Trainable | None:
    """Return how a layer is trained, or None for what only a changed weight can express.

    That is the weight of a norm, one matrix of a larger parameter, a convolution in groups, and a layer that
    widens its module or was made for another one.
    """
    site = host.site(name)
    if site is None or name.endswith("]") or not _takes_inputs_of(layer, site.module):
        return None
    weight = getattr(site.module, "weight", None)
    ndim = weight.ndim if isinstance(weight, Tensor) else 2
    if name.endswith(".bias"):
        return Trainable(site, _constant, is_last=ndim < 3)
    if layer.layout == "vector":
        return None
    if layer.layout == "embedding":
        return Trainable(site, _looked_up, True, lambda given, down: down.T[given.flatten()])
    if ndim < 3:
        return Trainable(site, _projected, True, lambda given, down: given.float().flatten(0, -2) @ down.T)
    if getattr(site.module, "groups", 1) != 1 or getattr(site.module, "transposed", False):
        return None
    through = _convolved_by_down(site.module)
    return Trainable(
        site,
        _convolved(through),
        False,
        lambda given, down: through(given, down).transpose(0, 1).flatten(1).T,
    )


def _takes_inputs_of(layer: Layer, module: nn.Module) -> bool:
    """False if a layer has other inputs than the module: features, or channels and kernel."""
    if layer.layout == "linear":
        return getattr(module, "in_features", None) in (None, layer.matrix_shape[1])
    channels, kernel = getattr(module, "in_channels", None), getattr(module, "kernel_size", ())
    if layer.layout != "conv" or channels is None:
        return True
    groups = getattr(module, "groups", 1)
    return layer.fits((layer.matrix_shape[0], channels // groups, *kernel))


class Factors(nn.Module):
    """The factors that are trained, float32, by layer: ``up (out, r)`` and ``down (r, in)``."""

    def __init__(self, starts: Mapping[str, tuple[Tensor, Tensor]], device: torch.device) -> None:
        super().__init__()
        self.names = tuple(starts)
        self.ups, self.downs = nn.ParameterList(), nn.ParameterList()
        for up, down in starts.values():
            self.ups.append(nn.Parameter(up.to(device, torch.float32, copy=True)))
            self.downs.append(nn.Parameter(down.to(device, torch.float32, copy=True)))

    def pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the name, ``up`` and ``down`` of every layer."""
        return zip(self.names, self.ups, self.downs, strict=True)

    def copied(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return a copy of all factors, on the CPU."""
        return {name: (up.detach().to("cpu", copy=True), down.detach().to("cpu", copy=True))
                for name, up, down in self.pairs()}  # fmt: skip

    def replace(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Put other values in place of the factors, those that ``copied`` returned."""
        with torch.no_grad():
            for name, up, down in self.pairs():
                up.copy_(pairs[name][0])
                down.copy_(pairs[name][1])


@contextmanager
def added(factors: Factors, places: Mapping[str, Trainable]) -> Iterator[None]:
    """Add what the factors make to the outputs of their modules, inside the context."""
    hooks = [
        places[name].site.module.register_forward_hook(_hook(places[name], up, down))
        for name, up, down in factors.pairs()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(place: Trainable, up: Tensor, down: Tensor) -> Any:
    rows, dim = place.site.rows, -1 if place.is_last else 1

    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        update = place.update(args[0], up, down).to(output.dtype)
        if update.ndim == 1 and not place.is_last:
            update = update.reshape(-1, *(1 for _ in output.shape[2:]))
        if rows is None:
            return output + update
        count = output.shape[dim]
        index = torch.arange(count, device=output.device)[rows] if isinstance(rows, slice) else rows
        shape = list(output.shape)
        shape[dim] = len(index)
        return output.index_add(dim, index.to(output.device), update.expand(shape))

    return add


def _projected(given: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.linear(given.to(torch.float32), down), up)


def _looked_up(numbers: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """For the matrix ``(features, tokens)`` of an embedding."""
    return F.linear(F.embedding(numbers, down.T), up)


def _constant(given: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The change of a bias, a matrix of one column: ``(features,)``."""
    return (up @ down)[:, 0]


def _convolved_by_down(module: nn.Module) -> Outputs:
    """The module's convolution with ``down`` as its weight, which gives ``(batch, R, ...)``."""
    conv: Any = module
    kernel = tuple(conv.kernel_size)
    run = _CONVOLUTIONS[len(kernel) - 1]

    def through(given: Tensor, down: Tensor) -> Tensor:
        padded, padding = _padded(conv, given.to(torch.float32))
        return run(padded, down.reshape(len(down), -1, *kernel), None, conv.stride, padding, conv.dilation)

    return through


def _convolved(through: Outputs) -> Update:
    def update(given: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return torch.einsum("or,br...->bo...", up, through(given, down))

    return update


def _padded(conv: Any, given: Tensor) -> tuple[Tensor, Any]:
    """The input as the convolution pads it, and the padding that is left to do."""
    if getattr(conv, "padding_mode", "zeros") == "zeros":
        return given, conv.padding
    return F.pad(given, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


def starting_factors(layer: MergedLayer, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the factors that training begins with: the layer's truncated SVD, split evenly, on the CPU.

    Columns that the start does not fill are 0 in ``up`` and random in ``down``: they change nothing yet, and
    can be trained.
    """
    up, down = layer.svd(rank, layer.value(torch.device("cpu"))).balanced()
    missing = min(rank, *layer.template.matrix_shape) - up.shape[1]
    if missing > 0:
        size = down.square().mean().sqrt() if down.numel() else 1.0
        new = torch.randn((missing, down.shape[1]), generator=generator) * size
        up, down = F.pad(up, (0, missing)), torch.cat((down, new))
    return up.contiguous(), down.contiguous()
