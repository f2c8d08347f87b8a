"""LoRA files by name: only inside ComfyUI's loras folders, and each read once while it is in use."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import folder_paths

from ....merge_ops.errors import ParameterError, did_you_mean
from ....merge_ops.formats.epochs import is_pattern
from ....merge_ops.formats.paths import CONFIG_NAME
from ....merge_ops.lora import Lora
from ....merge_ops.recipes.spelled import without_ending
from ...values.lora_names import find_files, match_files, use_forward_slashes

_NO_SIGNS = str.maketrans("", "", "*?")
FileState = tuple[str, int, int]  # path, time of the last change, size

# The cache outlives a call so that a change of strength, which makes ComfyUI run the node again, reads no
# file again. It keeps the files used last, up to this many bytes.
_KEPT = 2 << 30
_loaded: dict[FileState, Lora] = {}  # least recently used first; shared between threads


def list_lora_files() -> list[str]:
    """List the names of all files in the loras folders."""
    return list(folder_paths.get_filename_list("loras"))


def find_path(name: str) -> Path:
    """Find the path of a LoRA by its name, with or without folder and ending; see ``find_files``.

    Raises:
        ParameterError: if no file has the name, or if several have it and the folder is not given.
    """
    known = list_lora_files()
    matches = find_files(name, known)
    if len(matches) > 1:
        raise ParameterError(
            f"several LoRA files are called {name!r}: {', '.join(matches)}; write one of these names whole"
        )
    path = folder_paths.get_full_path("loras", matches[0]) if matches else None
    if path is not None:
        return Path(path)
    short = {PurePosixPath(use_forward_slashes(file)).stem for file in known[:5000]}
    hint = did_you_mean(name, [*known[:5000], *sorted(short)])
    raise ParameterError(f"there is no LoRA file {name!r} in the loras folders{hint}")


def expand_name(name: str) -> list[str]:
    """Return the names of all files that a pattern matches, the oldest epoch first; any other name as it is.

    Raises:
        ParameterError: if a pattern matches no file, or without a folder files in several.
    """
    known = list_lora_files()
    if not is_pattern(name) and not use_forward_slashes(name).rstrip().endswith("/"):
        return [name]
    if find_files(name, known):  # a file may be called so
        return [name]
    if found := match_files(name, known):
        return found
    stems = {PurePosixPath(without_ending(use_forward_slashes(file))).name for file in known[:5000]}
    plain = PurePosixPath(use_forward_slashes(name).translate(_NO_SIGNS)).name
    raise ParameterError(
        f"no LoRA file in the loras folders matches {name!r}{did_you_mean(plain, sorted(stems))}"
    )


def read_file_state(name: str) -> FileState:
    """Read what a cached LoRA depends on; a PEFT folder's configuration counts too.

    Raises:
        ParameterError: as ``find_path`` does.
    """
    path = find_path(name)
    config = path.with_name(CONFIG_NAME)
    stats = [file.stat() for file in (path, config) if file == path or file.is_file()]
    return str(path), sum(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats)


def read_lora(name: str) -> Lora:
    """Read the LoRA with that name; the file is read again only if it has changed.

    Raises:
        ParameterError: as ``find_path`` does.
        LoraFormatError: if the file cannot be read as a LoRA, or is written to meanwhile.
    """
    from ....merge_ops.formats import load

    state = read_file_state(name)
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
