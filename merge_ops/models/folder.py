"""A transformers folder on disk: its shards and the location of each tensor, without reading any tensor."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import LoraFormatError, reading, shown
from ..formats.header import Entry
from ..formats.tensor_file import read_entries

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
RECIPE = "lora_alloy.json"  # the recipe that a fused model was made with
_MAX_JSON = 64 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx", ".pkl")
_ABOUT_THE_BASE = ("README.md", RECIPE)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file. ``header`` is everything before the data, including the length."""

    path: Path
    header: bytes
    entries: tuple[Entry, ...]  # in the order of their data

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return len(self.header) + (self.entries[-1].end if self.entries else 0)


@dataclass(frozen=True)
class BaseModel:
    """A folder that transformers' ``from_pretrained`` can load."""

    path: Path
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    files: tuple[Path, ...]  # the other files that belong to the model
    left_out: tuple[str, ...]  # names of the rest: weights in other formats, folders, the model card

    @cached_property
    def tensors(self) -> dict[str, Entry]:
        """Every tensor of every shard, by name."""
        return {entry.name: entry for shard in self.shards for entry in shard.entries}

    def tensors_before(self, shard: Shard) -> int:
        """Return the number of tensors in the shards before this one."""
        return sum(len(s.entries) for s in self.shards[: self.shards.index(shard)])

    @property
    def size(self) -> int:
        """The size of all files in bytes."""
        return sum(s.size for s in self.shards) + sum(file.stat().st_size for file in self.files)

    def setting(self, key: str) -> Any:
        """Return a value of the configuration, or of its text part in a larger model; None if missing."""
        inner = self.config.get("text_config")
        return self.config.get(key, inner.get(key) if isinstance(inner, dict) else None)


def read_base(path: str | os.PathLike[str]) -> BaseModel:
    """Read the headers of a folder with ``config.json`` and ``model.safetensors``, in one file or in shards.

    Raises:
        LoraFormatError: if the folder is something else, or naming a shard that is missing, damaged or
            truncated.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise LoraFormatError(f"there is no folder {folder.name!r}; give a transformers folder")
    if not (folder / CONFIG).is_file():
        raise LoraFormatError(f"{folder.name} has no {CONFIG}; give a transformers folder")
    config = _read_json(folder / CONFIG)
    names = _shard_names(folder)
    shards = tuple(read_shard(folder / name) for name in names)
    _refuse_duplicates(shards)
    others = [file for file in sorted(folder.iterdir()) if file.name not in names]
    kept = tuple(file for file in others if _belongs(file, names))
    left_out = tuple(file.name for file in others if file not in kept)
    return BaseModel(folder, config, shards, kept, left_out)


def read_shard(path: Path) -> Shard:
    """Read the header of one safetensors file, and check it against the size of the file.

    Raises:
        LoraFormatError: if the file cannot be read, or is damaged or truncated.
    """
    with reading(path.name):
        header, entries, _ = read_entries(path)
        return Shard(path, header, entries)


def _shard_names(folder: Path) -> list[str]:
    """Return the files that transformers would read, in order."""
    if (folder / WHOLE).is_file():
        return [WHOLE]
    if not (folder / INDEX).is_file():
        hint = " (pickled weights: convert them)" if any(folder.glob("*.bin")) else ""
        raise LoraFormatError(f"{folder.name} has neither {WHOLE} nor {INDEX}{hint}")
    listed = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise LoraFormatError(f"{folder.name}/{INDEX} has no weight_map; download it again")
    names = set()
    for name in listed.values():
        plain = isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors")
        if not plain or "\\" in name:
            raise LoraFormatError(
                f"{folder.name}/{INDEX} names {shown(name)}, which is not a safetensors file"
            )
        if not (folder / name).is_file():
            raise LoraFormatError(f"{folder.name} lacks {name}, which its index lists; download it")
        names.add(name)
    return sorted(names)


def _belongs(file: Path, shards: list[str]) -> bool:
    """Return True for files that a fused model needs too: configuration, tokenizer, shard index, code."""
    if file.name.endswith(".index.json"):
        return file.name == INDEX and shards != [WHOLE]
    about_weights = file.suffix.lower() in _WEIGHTS or file.name in _ABOUT_THE_BASE
    return file.is_file() and not about_weights and not file.name.startswith(".")


def _refuse_duplicates(shards: tuple[Shard, ...]) -> None:
    seen: dict[str, str] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in seen:
                raise LoraFormatError(f"{entry.name} is in both {seen[entry.name]} and {shard.path.name}")
            seen[entry.name] = shard.path.name


def _read_json(file: Path) -> dict[str, Any]:
    where = f"{file.parent.name}/{file.name}"
    try:
        if file.stat().st_size > _MAX_JSON:
            raise LoraFormatError(f"{where} is too large")
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoraFormatError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LoraFormatError(f"{where} is not valid JSON") from error
    if not isinstance(value, dict):
        raise LoraFormatError(f"{where} is not a JSON object")
    return value
