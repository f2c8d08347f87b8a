"""Reading a base model: a transformers folder, a diffusers folder, or a single file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import LoraFormatError
from ..formats.model_folder import CONFIG, PIPELINE, listed_shards, read_json
from ..formats.paths import KINDS_OF_BASE, check_model
from ..formats.shard import Shard, read_shard
from ..names.spelling import DOTTED_COMPONENTS
from .base_model import BaseModel, is_about_the_base, is_weights, refuse_duplicates

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DIFFUSERS = "diffusion_pytorch_model*.safetensors"


def read_base(path: str | os.PathLike[str]) -> BaseModel:
    """Read the headers of a base model: of a folder of transformers or diffusers, or of a single file.

    Raises:
        LoraFormatError: if it is something else, or naming a file that is missing, damaged or truncated.
    """
    where = Path(path)
    check_model(where, KINDS_OF_BASE)
    if where.is_file():
        return BaseModel(where, "file", {}, (_read_single(where),), (), ())
    if (where / PIPELINE).is_file():
        return _read_pipeline(where)
    if not (where / CONFIG).is_file():
        raise LoraFormatError(f"{where.name} has no {CONFIG} and no {PIPELINE}; {KINDS_OF_BASE}")
    if any(where.glob(_DIFFUSERS)):
        return _read_component(where)
    return _read_transformers(where)


def _read_single(file: Path) -> Shard:
    shard = read_shard(file)
    if file.suffix.lower() not in (".safetensors", ".sft"):
        raise LoraFormatError(f"{file.name} does not end in .safetensors; {KINDS_OF_BASE}")
    return shard


def _read_transformers(folder: Path) -> BaseModel:
    config = read_json(folder / CONFIG)
    names = _shard_names(folder)
    shards = tuple(read_shard(folder / name) for name in names)
    refuse_duplicates(shards)
    others = [file for file in sorted(folder.iterdir()) if file.name not in names]
    kept = tuple(file for file in others if _belongs(file, names))
    left_out = tuple(file.name for file in others if file not in kept)
    return BaseModel(folder, "transformers", config, shards, kept, left_out)


def _shard_names(folder: Path) -> list[str]:
    """Return the files that transformers would read, in order."""
    if (folder / WHOLE).is_file():
        return [WHOLE]
    if not (folder / INDEX).is_file():
        hint = " (pickled weights: convert them)" if any(folder.glob("*.bin")) else ""
        raise LoraFormatError(f"{folder.name} has neither {WHOLE} nor {INDEX}{hint}")
    return listed_shards(folder / INDEX)


def _belongs(file: Path, shards: list[str]) -> bool:
    """Return True for files that a fused model needs too: configuration, tokenizer, shard index, code."""
    if file.name.endswith(".index.json"):
        return file.name == INDEX and shards != [WHOLE]
    return file.is_file() and not is_weights(file) and not is_about_the_base(file)


def _read_pipeline(folder: Path) -> BaseModel:
    """A diffusers folder: each part of the pipeline that LoRAs change is a folder of its own."""
    shards: list[Shard] = []
    for component in DOTTED_COMPONENTS:
        shards += _read_part(folder / component, component)
    if not shards:
        raise LoraFormatError(
            f"{folder.name} has no .safetensors file in {' or '.join(_parts(folder))}; convert its weights "
            "to .safetensors"
        )
    own = {shard.path for shard in shards}
    others = [file for file in _all_files(folder) if file not in own]
    kept = tuple(file for file in others if _belongs_to_pipeline(file, folder, shards))
    left_out = tuple(str(file.relative_to(folder)) for file in others if file not in kept)
    return BaseModel(folder, "diffusers", read_json(folder / PIPELINE), tuple(shards), kept, left_out)


def _read_component(folder: Path) -> BaseModel:
    """The folder of a denoiser by itself, as diffusers' ``save_pretrained`` writes it."""
    config = read_json(folder / CONFIG)
    component = "unet" if "UNet" in str(config.get("_class_name")) else "transformer"
    shards = _read_part(folder, component)
    own = {shard.path for shard in shards}
    others = [file for file in sorted(folder.iterdir()) if file not in own]
    kept = tuple(
        file for file in others if file.is_file() and not is_weights(file) and not is_about_the_base(file)
    )
    left_out = tuple(file.name for file in others if file not in kept)
    return BaseModel(folder, "diffusers", config, tuple(shards), kept, left_out)


def _read_part(folder: Path, component: str) -> list[Shard]:
    """Read all weights of one part: variants such as ``.fp16`` too, each of them one file or in shards."""
    for index in sorted(folder.glob("*.index*.json")):
        listed_shards(index)  # refuses one that lists a missing file
    return [read_shard(file, component) for file in sorted(folder.glob("*.safetensors"))]


def _belongs_to_pipeline(file: Path, folder: Path, shards: Iterable[Shard]) -> bool:
    """Return True for configurations, tokenizers and weights that no LoRA changes.

    Weights beside fused ones, in another format, would be those of the base model; so would a checkpoint
    beside the folders.
    """
    inside = file.relative_to(folder)
    if any(part.startswith(".") for part in inside.parts) or is_about_the_base(file):
        return False
    fused = {shard.component for shard in shards}
    return not (is_weights(file) and (len(inside.parts) == 1 or inside.parts[0] in fused))


def _all_files(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(place) / name for name in sorted(files))


def _parts(folder: Path) -> list[str]:
    return [name for name in DOTTED_COMPONENTS if (folder / name).is_dir()] or ["unet", "transformer"]
