"""The JSON files in the folder of a model: its configuration, and the index of its shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import LoraFormatError, shown

CONFIG, PIPELINE = "config.json", "model_index.json"
_MAX_JSON = 64 << 20


def listed_shards(index: Path) -> list[str]:
    """Return the files that an index of shards lists, in order.

    Raises:
        LoraFormatError: if it is no index, or names a file that is missing or outside its folder.
    """
    folder = index.parent
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise LoraFormatError(f"{folder.name}/{index.name} has no weight_map; download it again")
    names = set()
    for name in listed.values():
        plain = isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors")
        if not plain or "\\" in name:
            raise LoraFormatError(
                f"{folder.name}/{index.name} names {shown(name)}, which is not a safetensors file"
            )
        if not (folder / name).is_file():
            raise LoraFormatError(f"{folder.name} lacks {name}, which its index lists; download it")
        names.add(name)
    return sorted(names)


def read_json(file: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        LoraFormatError: if it cannot be read, or is no JSON object.
    """
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
