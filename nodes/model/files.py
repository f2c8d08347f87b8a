"""LoRA files by name: only inside ComfyUI's loras folders, each read once while it is in use."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import folder_paths

from ...merge_ops.errors import ParameterError, did_you_mean
from ...merge_ops.formats import load
from ...merge_ops.formats.peft_config import CONFIG_NAME
from ...merge_ops.lora import Lora
from ..values.lora_names import files_called, plain_name

# Files are kept so that changing a strength does not read them again: those used last, up to this many bytes.
_KEPT = 2 << 30
_loaded: dict[tuple[str, int, int], Lora] = {}  # in the order of use; threads may share it


def lora_files() -> list[str]:
    """Names of all files in the loras folders."""
    return list(folder_paths.get_filename_list("loras"))


def resolve(name: str) -> Path:
    """The path of a LoRA by its name, with or without folder and ``.safetensors``.

    Raises:
        ParameterError: if no file has the name, or a name without folder fits several.
    """
    known = lora_files()
    found = files_called(name, known)
    if len(found) > 1:
        raise ParameterError(
            f"several LoRA files are called {name!r}: {', '.join(found)}; give the folder too"
        )
    path = folder_paths.get_full_path("loras", found[0]) if found else None
    if path is not None:
        return Path(path)
    short = {PurePosixPath(plain_name(file)).stem for file in known[:5000]}
    hint = did_you_mean(name, [*known[:5000], *sorted(short)])
    raise ParameterError(f"there is no LoRA file {name!r} in the loras folders{hint}")


def state_of(name: str) -> tuple[str, int, int]:
    """What a cached result depends on: path, time of change, size; with a PEFT folder's configuration."""
    path = resolve(name)
    config = path.with_name(CONFIG_NAME)
    stats = [file.stat() for file in (path, config) if file == path or file.is_file()]
    return str(path), sum(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats)


def read(name: str) -> Lora:
    """The LoRA with that name; the file is read again only if it has changed.

    Raises:
        LoraFormatError: if it cannot be read as a LoRA, or somebody writes it meanwhile.
    """
    state = state_of(name)
    lora = _loaded.pop(state, None)
    if lora is None:
        for stale in [other for other in list(_loaded) if other[0] == state[0]]:
            _loaded.pop(stale, None)
        lora = load(state[0])
    _loaded[state] = lora
    order = list(_loaded)
    while len(order) > 1 and sum(size for _, _, size in order) > _KEPT:
        _loaded.pop(order.pop(0), None)
    return lora
