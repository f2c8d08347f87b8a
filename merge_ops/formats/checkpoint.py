"""Weights of a base model from its files: each is read when it is asked for, and no other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LoraFormatError
from ..names.language import split_wrappers
from ..names.spelling import DOTTED_COMPONENTS, canonical_name

# what single-file checkpoints put before the names of a part of the model
_PARTS = {
    "cond_stage_model.transformer.": "text_encoder.",
    "conditioner.embedders.0.transformer.": "text_encoder.",
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "model.diffusion_model.": "diffusion_model.",
}
_DENOISERS = ("unet", "transformer", "diffusion_model")


class BaseFiles:
    """The weights of a checkpoint by layer: called, it reads one, or gives None where it has none."""

    def __init__(self, places: dict[str, tuple[Path, str]]) -> None:
        self._places = places
        self._flat = {_flattened(name): place for name, place in places.items()}
        self._of_versions = _of_versions(places)

    def __call__(self, layer: str) -> Tensor | None:
        place = self._place(layer)
        return None if place is None else _tensor(*place)

    def __contains__(self, layer: str) -> bool:
        return self._place(layer) is not None

    def _place(self, layer: str) -> tuple[Path, str] | None:
        place = self._places.get(layer) or self._flat.get(_flattened(layer))
        parts = split_wrappers(layer) if place is None else None
        return place if parts is None else self._of_versions.get((parts[0], parts[2]))


def open_base(path: str | os.PathLike[str]) -> BaseFiles:
    """A function from a layer's name to its weight in a checkpoint; None where it has none.

    ``path`` is a safetensors file, or a folder of one: of a model or of a whole pipeline, sharded or not. The
    spelling of names does not matter, nor whether a trainer flattened them.

    Raises:
        LoraFormatError: if there is no safetensors file, or one cannot be read.
    """
    where = Path(path)
    files = list(_files(where))
    if not files:
        raise LoraFormatError(f"{where.name} holds no .safetensors file of a base model; check the path")
    places: dict[str, tuple[Path, str]] = {}
    for component, file in files:
        for key in _keys(file):
            stem, _, last = key.rpartition(".")
            if last in ("weight", "bias"):
                name = _name(stem, component)
                name = name if last == "weight" else f"{name}.bias"
                places.setdefault(name, (file, key))
    return BaseFiles(places)


def _files(where: Path) -> Iterator[tuple[str, Path]]:
    """The component that a file belongs to, or nothing, and the file."""
    if where.is_file():
        yield "", where
    elif where.is_dir():
        yield from (("", file) for file in sorted(where.glob("*.safetensors")))
        for component in DOTTED_COMPONENTS:
            yield from ((component, file) for file in sorted((where / component).glob("*.safetensors")))


def _name(stem: str, component: str) -> str:
    if component:
        return canonical_name(f"{component}.{stem}")
    for prefix, part in _PARTS.items():
        if stem.startswith(prefix):
            return canonical_name(part + stem.removeprefix(prefix))
    return canonical_name(stem)


def _flattened(name: str) -> str:
    """The name as trainers flatten it, without saying which kind of denoiser it is in."""
    component, _, path = name.partition(".")
    path = path if component in _DENOISERS else name
    return path.removeprefix("text_encoder.text_model.").replace(".", "_")


def _of_versions(places: dict[str, tuple[Path, str]]) -> dict[tuple[str, str], tuple[Path, str]]:
    """The places of a language model's weights, whatever version of transformers named them."""
    found: dict[tuple[str, str], tuple[Path, str]] = {}
    twice = set[tuple[str, str]]()
    for name, place in places.items():
        if (parts := split_wrappers(name)) is not None:
            key = parts[0], parts[2]
            if found.setdefault(key, place) != place:
                twice.add(key)
    return {key: place for key, place in found.items() if key not in twice}


def _keys(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise LoraFormatError(f"{file.name} cannot be read as a base model: {error}") from error


def _tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        tensor: Tensor = opened.get_tensor(key)
        return tensor
