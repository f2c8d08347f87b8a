"""The layers of a model under its authors' names, and under those of diffusers' modules.

ComfyUI keeps many models under their authors' names. The rows hold diffusers' names only of the models, or
parts of them, for which ComfyUI's own key maps have none; tests compare them with diffusers' own converters.
"""

from __future__ import annotations

import re

from .architectures import LAYER_TABLES, SWAPPED, WORDS
from .parts import DENOISERS

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WORD = re.compile(
    rf"({'|'.join(sorted([*WORDS['diffusion_model'], '[0-9]+'], key=len, reverse=True))})(?:_|$)"
)


def diffusers_names(image_model: str, name: str) -> tuple[str, ...]:
    """Return diffusers' names of an original layer: ``()`` if the rows have none, several if it is fused."""
    for block, diffusers_block, layers in LAYER_TABLES.get(image_model, ()):
        number = ""
        if "#" in block:
            match = _NUMBER.search(name)
            if match is None:
                continue
            number = match[0]
        head = block.replace("#", number)
        rest = name.removeprefix(head)
        if name.startswith(head) and rest in layers:
            return tuple(diffusers_block.replace("#", number) + layer for layer in layers[rest])
    return ()


def pieces(names: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return ``(start, length)`` of the rows that each of so many diffusers layers has in a fused weight.

    Queries are as wide as the model. Keys and values share the rest evenly if there are only these three
    (grouped queries), and are as wide as the queries if an MLP follows.
    """
    rows, width = shape[0], shape[1]
    if names == 1:
        return [(0, rows)]
    lengths = [width, *[(rows - width) // 2] * 2] if names == 3 else [width, width, width, rows - 3 * width]
    starts = [sum(lengths[:i]) for i in range(names)]
    return list(zip(starts, lengths, strict=True))


def is_swapped(image_model: str, name: str) -> bool:
    """Return True if the two halves of a layer's rows are the other way round in diffusers."""
    return (image_model, name) in SWAPPED


def add_dots(name: str) -> str:
    """Return the original path of a layer, with the dots that kohya's spelling of it lacks."""
    component, _, path = name.partition(".")
    path = path if component in DENOISERS else name
    if "." in path:
        return path
    words = [match[1] for match in _WORD.finditer(path)]
    return ".".join(words) if "_".join(words) == path else path
