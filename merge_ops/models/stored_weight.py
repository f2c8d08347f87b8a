"""One weight on its way through a merge: read into float32, changed, and rounded as the file stores it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter

import torch
from torch import Tensor

from ..errors import MergeError
from ..formats.container import is_finite
from ..formats.header import Entry
from ..merging.merged import Merged
from ..merging.svd import product_inner
from ..names.checkpoint import denoiser_key
from .float8 import round_at_random, seed_of
from .places import Place

_BLOCK = 1 << 18  # numbers that are looked at together
_EXACT = (torch.float32, torch.float64)  # dtypes in which deltas are added without rounding the weight


def read_exact(stored: Tensor, scale: Tensor | None) -> Tensor:
    """Return the numbers that a stored weight stands for, in float32 or wider; those are not copied."""
    exact = stored if stored.dtype in _EXACT else stored.to(torch.float32)
    return exact if scale is None else exact.mul_(scale.to(torch.float32))


def store(exact: Tensor, into: Tensor, entry: Entry, scale: Tensor | None) -> Tensor | None:
    """Round a weight to the dtype of its tensor, as ComfyUI rounds one that it patches.

    ``into`` is the tensor that gets it; it may be ``exact`` itself. Where it has a scale, it gets a fresh
    one, which puts its largest entry at the end of the range; that is returned.

    Raises:
        MergeError: if the dtype cannot hold a number.
    """
    if into.dtype.itemsize > 1:
        into.copy_(exact)
        return None
    least, most = torch.aminmax(exact) if exact.numel() else (torch.zeros(()), torch.zeros(()))
    largest, limit = torch.maximum(-least, most), torch.finfo(into.dtype).max
    if scale is not None:
        fresh = (largest / limit).to(scale.dtype)
        scale = torch.where(fresh > 0, fresh, scale)  # all zeros keep their scale
        exact = exact * (1.0 / scale.to(torch.float32))
    elif not bool(largest <= limit):
        raise MergeError(f"{entry.name} overflows {entry.dtype}; nothing was saved")
    round_at_random(exact, into, seed_of(denoiser_key(entry.name)))
    return scale


def add_layers(exact: Tensor, places: Sequence[Place], merged: Merged) -> float:
    """Add layers to a weight in place, and return the Frobenius norm of what was added.

    Whole weights in the merge replace their rows first. Then deltas are added LoRA by LoRA, where rows
    overlap the fewest rows first: the order in which ComfyUI adds them.
    """
    squares = 0.0
    for place in places:
        whole = merged.whole_weights.get(place.layer)
        if whole is not None:
            target = _rows(exact, place)
            value = _as_stored(whole.value, place, target)
            squares += norm(value - target) ** 2
            target.copy_(value)
    adapted = sorted(
        (place for place in places if place.layer in merged.layers),
        key=lambda place: place.rows[::-1] if place.rows else (exact.shape[0] if exact.ndim else 1, 0),
    )
    steps = [(listed, place, make) for place in adapted for listed, make in merged.addends(place.layer)]
    sizes: dict[str, list[float]] = {}
    for _, place, make in sorted(steps, key=itemgetter(0)):
        target = _rows(exact, place)
        delta = _as_stored(make(), place, target)
        target += delta
        sizes.setdefault(place.layer, []).append(norm(delta))
        del delta
    for place in adapted:
        own = sizes[place.layer]
        squares += (own[0] if len(own) == 1 else _norm_of_sum(place, merged)) ** 2
    return math.sqrt(squares)


def _rows(exact: Tensor, place: Place) -> Tensor:
    return exact if place.rows is None else exact.narrow(0, *place.rows)


def _norm_of_sum(place: Place, merged: Merged) -> float:
    """The norm of what several LoRAs add, from their factors: no buffer holds the sum."""
    pair = merged.layer(place.layer).factors()
    if pair is None:
        return 0.0
    up, down = (factor.cpu() for factor in pair)
    up = up if place.part is None else up.narrow(0, *place.part)
    return math.sqrt(max(product_inner((up, down), (up, down)), 0.0))


def check_finite(stored: Tensor, entry: Entry, layers: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        MergeError: naming the tensor and the layers that were added.
    """
    if not all(is_finite(part) for part in torch.split(stored.flatten(), _BLOCK)):
        raise MergeError(
            f"{entry.name} with {layers} overflows {entry.dtype}, or the weight was not finite before; "
            "nothing was saved"
        )


def norm(tensor: Tensor) -> float:
    """Return the Frobenius norm."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _as_stored(value: Tensor, place: Place, target: Tensor) -> Tensor:
    """The rows of a layer's delta or weight, as they lie in the rows of the tensor."""
    value = value.to("cpu", target.dtype)
    value = torch.cat(value.chunk(2)[::-1]) if place.swapped else value
    value = value if place.part is None else value.narrow(0, *place.part)
    return (value.T if place.transposed else value).reshape(target.shape)
