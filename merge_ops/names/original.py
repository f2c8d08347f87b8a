"""The layers of a model under its authors' names, and under those of diffusers' modules.

ComfyUI keeps many models under their authors' names. The rows hold diffusers' names of these layers; tests
compare them with diffusers' own converters, and with ComfyUI's key maps where those have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache

from .architecture import LayerTable
from .architectures import LAYER_TABLES, SWAPPED, WORDS
from .parts import DENOISERS

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WORD = re.compile(
    rf"({'|'.join(sorted([*WORDS['diffusion_model'], '[0-9]+'], key=len, reverse=True))})(?:_|$)"
)


def diffusers_names(image_model: str, name: str) -> tuple[str, ...]:
    """Return diffusers' names of an original layer: ``()`` if the rows have none, several if it is fused."""
    return next(_names_in(LAYER_TABLES.get(image_model, ()), name), ())


@lru_cache(maxsize=1 << 15)  # the checkpoints of one model have the same names
def all_diffusers_names(name: str) -> tuple[tuple[tuple[str, ...], bool], ...]:
    """Return diffusers' names of an original layer in each model that has a layer of this name.

    Each entry has the names, several if the layer is fused, and whether its halves may be swapped.
    """
    found = (
        (names, _with_sign(name) in _swapped_in(image_model))
        for image_model, table in LAYER_TABLES.items()
        for names in _names_in(table, name)
    )
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=1 << 15)
def all_original_names(name: str) -> tuple[tuple[str, int, int, bool], ...]:
    """Return the original layers that a layer of diffusers may be, or be a part of.

    Each entry has the name, the place of this part and the number of parts, and whether halves may be
    swapped.
    """
    found = []
    for image_model, block, diffusers_block, layers in _inverted():
        head = _head(diffusers_block, name)
        if head is None:
            continue
        for layer, place, count in layers.get(name[len(head[0]) :], ()):
            original = block.replace("#", head[1]) + layer
            found.append((original, place, count, _with_sign(original) in _swapped_in(image_model)))
    return tuple(dict.fromkeys(found))


def pieces(names: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return ``(start, length)`` of the rows that each of so many diffusers layers has in a fused weight.

    Queries are as wide as the model. Keys and values share the rest evenly if there are only these three
    (grouped queries), or all rows if there are only these two, and are as wide as the queries if an MLP
    follows.
    """
    if names == 1:
        return [(0, shape[0])]
    rows, width = shape[0], shape[1]
    if names == 2:
        lengths = [rows // 2] * 2
    elif names == 3:
        lengths = [width, *[(rows - width) // 2] * 2]
    else:
        lengths = [width, width, width, rows - 3 * width]
    starts = [sum(lengths[:i]) for i in range(names)]
    return list(zip(starts, lengths, strict=True))


def is_swapped(image_model: str, name: str) -> bool:
    """Return True if the two halves of a layer's rows are the other way round in diffusers.

    A layer of a block that has more than two parts is the same in both; see ``has_halves``.
    """
    return _with_sign(name) in _swapped_in(image_model)


def has_halves(shape: tuple[int, ...]) -> bool:
    """Return True for the weight of a norm that makes its shift and its scale, and nothing else."""
    return len(shape) == 2 and shape[0] == 2 * shape[1]


def add_dots(name: str) -> str:
    """Return the original path of a layer, with the dots that kohya's spelling of it lacks."""
    component, _, path = name.partition(".")
    path = path if component in DENOISERS else name
    if "." in path:
        return path
    words = [match[1] for match in _WORD.finditer(path)]
    return ".".join(words) if "_".join(words) == path else path


def _names_in(table: LayerTable, name: str) -> Iterator[tuple[str, ...]]:
    for block, diffusers_block, layers in table:
        head = _head(block, name)
        if head is not None and (rest := name[len(head[0]) :]) in layers:
            yield tuple(diffusers_block.replace("#", head[1]) + layer for layer in layers[rest])


def _head(block: str, name: str) -> tuple[str, str] | None:
    """Return the beginning of a name that is a block, and the number of the block; None for another name."""
    number = ""
    if "#" in block:
        match = _NUMBER.search(name)
        if match is None:
            return None
        number = match[0]
    head = block.replace("#", number)
    return (head, number) if name.startswith(head) else None


def _with_sign(name: str) -> str:
    return _NUMBER.sub("#", name, count=1)


@cache
def _swapped_in(image_model: str) -> frozenset[str]:
    return frozenset(_with_sign(layer) for model, layer in SWAPPED if model == image_model)


@cache
def _inverted() -> list[tuple[str, str, str, dict[str, list[tuple[str, int, int]]]]]:
    """``(model, original block, diffusers' block, layers)``, with layers by what diffusers calls them."""
    inverted = []
    for image_model, table in LAYER_TABLES.items():
        for block, diffusers_block, layers in table:
            by_name: dict[str, list[tuple[str, int, int]]] = {}
            for layer, names in layers.items():
                for place, name in enumerate(names):
                    by_name.setdefault(name, []).append((layer, place, len(names)))
            inverted.append((image_model, block, diffusers_block, by_name))
    return inverted
