"""LoRA files by what is in them: under which name a dropped file, or the source of a recipe, lies here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ....merge_ops.recipes import Recipe, Source
from ....merge_ops.recipes.source_file import SourceFile, files_called
from ....merge_ops.recipes.spelled import ENDINGS
from ...values.lora_names import use_forward_slashes
from .lora_files import list_lora_files

SAMPLE = 4096  # bytes from the middle of a file, which tell apart files of one size

# what files hash to, by path, time of the last change and size: reading a large file again takes seconds
_digests: dict[tuple[str, int, int], tuple[str, ...]] = {}
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A source of a recipe: the name of its file, or of what is not there, and what to say of it."""

    name: str
    is_missing: bool = False
    note: str | None = None


def list_files() -> dict[str, SourceFile]:
    """List the safetensors files of the loras folders by their names, with forward slashes."""
    files = {}
    for name in list_lora_files():
        path = folder_paths.get_full_path("loras", name) if name.lower().endswith(ENDINGS) else None
        if path is not None:
            plain = use_forward_slashes(name)
            files[plain] = SourceFile(Path(path), ("loras", *plain.split("/")))
    return files


def list_alike(size: int, sample: bytes) -> dict[str, SourceFile]:
    """List the files of a size that have these bytes in their middle; only files of that size are opened."""
    return {name: file for name, file in list_files().items() if _is_alike(file.path, size, sample)}


def find_content(alike: dict[str, SourceFile], sha256: str, called: str) -> str | None:
    """Find the name of the file with a SHA-256; of several, the one that is ``called`` so."""
    order = sorted(alike, key=lambda name: name.rpartition("/")[2] != called)
    return next((name for name in order if sha256 in read_digests(alike[name])), None)


def find_names(
    recipe: Recipe, by_content: bool = False, is_gone: Callable[[], bool] = lambda: False
) -> list[FoundSource]:
    """Find the sources of a recipe, in its order. Files of the same name are compared with its SHA-256.

    ``by_content`` goes on with all other files, as long as nobody ``is_gone`` who waits for it.
    """
    files = list_files()
    names = {file.path: name for name, file in files.items()}
    called = {source.name: files_called(source.name, list(files.values())) for source in recipe.sources}
    found: dict[str, str] = {}
    wanted = {source.sha256 for source in recipe.sources if source.sha256 is not None}
    likely = [file for source in recipe.sources if source.sha256 for file in called[source.name]]
    others = [file for file in files.values() if file not in likely] if by_content else []
    for file in (*dict.fromkeys(likely), *others):
        if wanted <= found.keys() or is_gone():
            break
        for digest in wanted.intersection(read_digests(file)):
            found.setdefault(digest, names[file.path])
    return [
        FoundSource(found[source.sha256])
        if source.sha256 in found
        else _by_name(source, [names[file.path] for file in called[source.name]])
        for source in recipe.sources
    ]


def read_digests(file: SourceFile) -> tuple[str, ...]:
    """Read a file's SHA-256, and that with its PEFT configuration; none if it cannot be read."""
    try:
        stats = [path.stat() for path in (file.path, file.config) if path is not None]
    except OSError:  # it was removed meanwhile
        return ()
    state = str(file.path), sum(stat.st_mtime_ns for stat in stats), sum(stat.st_size for stat in stats)
    if state not in _digests:
        while len(_digests) >= _KEPT:
            _digests.pop(next(iter(_digests)), None)
        _digests[state] = tuple(file.digests())
    return _digests[state]


def name_of_folder() -> str:
    """Name the folder that LoRA files belong into, as it lies below ComfyUI's own folder."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("loras")]
    base = Path(folder_paths.base_path)
    inside = [folder for folder in folders if folder.is_relative_to(base)]
    if inside:
        return inside[0].relative_to(base).as_posix()
    return folders[0].name if folders else "loras"


def _by_name(source: Source, names: list[str]) -> FoundSource:
    if not names:
        return FoundSource(source.name, is_missing=True)
    if len(names) > 1:
        return FoundSource(source.name, note=f"several files are called {source.name}; choose one in its row")
    if source.sha256 is None:
        return FoundSource(names[0])
    return FoundSource(names[0], note=f"{names[0]} has the name, but is not the file that was merged")


def _is_alike(path: Path, size: int, sample: bytes) -> bool:
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            file.seek(size // 2)
            return file.read(len(sample)) == sample
    except OSError:  # a file that cannot be read is not the one that was read
        return False
