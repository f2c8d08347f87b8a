"""Reading a LoRA from a path: a safetensors file or a PEFT folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import LoraFormatError, reading, shown
from ..lora import Lora
from .container import changed, file_digest, read_container
from .paths import CONFIG_NAME, PICKLED_NAME, WEIGHTS_NAME, is_folder
from .peft_folder import read_peft_folder
from .state_dict import from_tensors
from .written import Written

Digest = Callable[..., str] | None


def load(path: str | os.PathLike[str], allow_pickle: bool = False, adapter: str | None = None) -> Lora:
    """Read one LoRA from a ``.safetensors`` file or a PEFT folder.

    The spelling of the keys does not matter: layers have canonical names, and the scale of each is resolved
    (``alpha / rank``, rsLoRA, patterns, metadata). Other kinds of adapters in the file are listed in
    ``unmerged``.

    Raises:
        LoraFormatError: if the path cannot be read as a LoRA; the message names the file and what to do.
    """
    return _load(Path(path), file_digest, allow_pickle, adapter)


def read_back(path: Path, written: Written) -> Lora:
    """Read a file or folder just written, and require every bit; without checksum and search for NaN.

    The tensors of the LoRA are the written ones, so that they are not in memory twice.

    Raises:
        MergeError: if the weights differ from what was written.
        LoraFormatError: if they cannot be read as a LoRA.
    """
    return _load(path, None, written=written)


def _load(
    where: Path,
    digest: Digest,
    allow_pickle: bool = False,
    adapter: str | None = None,
    written: Written | None = None,
) -> Lora:
    in_a_folder = is_folder(where)
    if in_a_folder and (inner := _folder_of(where, adapter)) is not None:
        where, adapter = inner, None
    if in_a_folder:
        names = (WEIGHTS_NAME, PICKLED_NAME) if allow_pickle else (WEIGHTS_NAME,)
        weights = next((where / name for name in names if (where / name).is_file()), where / WEIGHTS_NAME)
        return _load_peft_folder(where, weights, digest, allow_pickle, adapter, written)
    with _unchanged(where):
        tensors, metadata = read_container(where, allow_pickle, written)
        in_folder = (where.parent / CONFIG_NAME).is_file()
        if tensors and in_folder and all(key.startswith("base_model.model.") for key in tensors):
            return _load_peft_folder(where.parent, where, digest, allow_pickle, adapter, written)
        lora = from_tensors(where.stem, tensors, metadata, where.name, adapter)
        return _located(lora, where, digest, where)


def _folder_of(where: Path, adapter: str | None) -> Path | None:
    """The folder inside a folder that holds the adapter: PEFT saves each that is not ``default`` in its own.

    Raises:
        LoraFormatError: if there are several, and none is chosen.
    """
    try:
        found = {child.name: child for child in sorted(where.iterdir()) if (child / CONFIG_NAME).is_file()}
    except OSError as error:
        with reading(where.name):
            raise LoraFormatError(f"the folder cannot be read: {error.strerror or error}") from error
    if adapter in found:
        return found[adapter]
    if (where / CONFIG_NAME).is_file() or not found:
        return None
    if len(found) == 1 and adapter is None:
        return next(iter(found.values()))
    with reading(where.name):
        raise LoraFormatError(
            f"the folder holds the adapters {', '.join(map(shown, found))}; give the folder of one, or "
            f"choose it with adapter={next(iter(found))!r}"
        )


def _load_peft_folder(
    folder: Path,
    file: Path,
    digest: Digest,
    allow_pickle: bool,
    adapter: str | None,
    written: Written | None = None,
) -> Lora:
    with _unchanged(file, folder / CONFIG_NAME):
        lora = read_peft_folder(folder, file, allow_pickle, adapter, written)
        return _located(lora, folder, digest, file, folder / CONFIG_NAME)


def _located(lora: Lora, path: Path, digest: Digest, *source: Path) -> Lora:
    return replace(lora, path=path, sha256=digest(*source) if digest else None)


@contextmanager
def _unchanged(*files: Path) -> Iterator[None]:
    """Refuse files that somebody writes while weights, configuration and checksum are read one by one."""
    before = [_state(file) for file in files]
    yield
    if [_state(file) for file in files] != before:
        with reading(files[0].name):
            raise changed()


def _state(file: Path) -> tuple[int, int] | None:
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None
