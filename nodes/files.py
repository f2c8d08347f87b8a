"""LoRA files by name: only inside ComfyUI's loras folders, each read once while it is in use."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import folder_paths

from ..merge_ops.errors import ParameterError, did_you_mean
from ..merge_ops.formats import load
from ..merge_ops.types import Lora

# Tensors of a file are mapped, not read, so what is kept here is memory that the system can take back. It is
# kept so # that changing a strength does not read files again.
_KEPT = 32
_loaded: OrderedDict[tuple[str, int, int], Lora] = OrderedDict()


def lora_files() -> list[str]:
    """Names of all files in the loras folders."""
    return list(folder_paths.get_filename_list("loras"))


def resolve(name: str) -> Path:
    """The path of a LoRA by its name, with or without folder and ``.safetensors``.

    Raises:
        ParameterError: if no file has the name, or a name without folder fits several.
    """
    known = lora_files()
    for candidate in (name, f"{name}.safetensors", f"{name}/adapter_model.safetensors"):
        path = folder_paths.get_full_path("loras", candidate)
        if path is not None and _normal(candidate) in map(_normal, known):
            return Path(path)
    wanted = _normal(name).rpartition("/")[2]
    alike = [file for file in known if _normal(file).rpartition("/")[2] in (wanted, f"{wanted}.safetensors")]
    if len(alike) == 1 and "/" not in _normal(name):
        return Path(folder_paths.get_full_path_or_raise("loras", alike[0]))
    if len(alike) > 1:
        raise ParameterError(
            f"several LoRA files are called {name!r}: {', '.join(alike)}; give the folder too"
        )
    raise ParameterError(
        f"there is no LoRA file {name!r} in the loras folders{did_you_mean(name, known[:5000])}"
    )


def state_of(name: str) -> tuple[str, int, int]:
    """What a cached result depends on: path, time of change, size."""
    path = resolve(name)
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def read(name: str) -> Lora:
    """The LoRA with that name; the file is read again only if it has changed."""
    state = state_of(name)
    if state not in _loaded:
        for stale in [other for other in _loaded if other[0] == state[0]]:
            del _loaded[stale]
        _loaded[state] = load(state[0])
    _loaded.move_to_end(state)
    while len(_loaded) > _KEPT:
        _loaded.popitem(last=False)
    return _loaded[state]


def _normal(name: str) -> str:
    return name.replace("\\", "/")
