"""The epochs of a training: files that a pattern or a folder names, from the oldest to the newest.

In a pattern, ``*`` stands for any part of one name and ``?`` for one sign; nothing else has a meaning, since
brackets are common in names of files.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

from ..errors import LoraFormatError, ParameterError, did_you_mean, shown
from .paths import CONFIG_NAME, PICKLED_NAME, WEIGHTS_NAME

if TYPE_CHECKING:
    from ..lora import Lora

_Path = TypeVar("_Path", bound=PurePath)
_ENDINGS = (".safetensors", ".sft")
_PICKLED = (".pt", ".bin", ".ckpt", ".pth")
# kohya's name-000010 and name-step00001000, ai-toolkit's name_000001000, diffusers' and PEFT's checkpoint-500
_NUMBERED = re.compile(r"(.*?)[-_. ]*(?:epoch|ep|e|steps?|s)?[-_. ]*(\d+)", re.IGNORECASE | re.DOTALL)


def load_all(path: str | os.PathLike[str], allow_pickle: bool = False) -> list[Lora]:
    """Read all LoRAs that a pattern or a folder names, such as the epochs of a training, oldest first.

    >>> import shutil
    >>> from pathlib import Path
    >>> Path("epochs").mkdir()
    >>> for name in ("ink-000002", "ink-000010", "ink"):
    ...     copied = shutil.copy("ink.safetensors", f"epochs/{name}.safetensors")
    >>> [lora.name for lora in merge_ops.load_all("epochs/ink*")]
    ['ink-000002', 'ink-000010', 'ink']

    ``merge`` averages them with ``method="mean"``; ``recency_weights`` counts newer ones more.

    Raises:
        ParameterError: if the pattern names no LoRA.
        LoraFormatError: as ``load`` does.
    """
    from .converted import load  # patterns are also read where nothing is loaded, before torch is imported

    return [load(found, allow_pickle=allow_pickle) for found in find_epochs(path, allow_pickle)]


def find_epochs(path: str | os.PathLike[str], allow_pickle: bool = False) -> list[Path]:
    """Return the paths that a path, a pattern or a folder names, oldest epoch first.

    A PEFT folder is one LoRA. Any other folder stands for the LoRA files in it, or for the PEFT folders in it
    if these are numbered, as those of a training are. A path that exists is never read as a pattern.

    Raises:
        ParameterError: if a pattern names no LoRA.
    """
    where = Path(path)
    if os.path.lexists(where):
        inside = _in_folder(where, allow_pickle) if where.is_dir() else []
        return in_epoch_order(inside) or [where]
    if not is_pattern(str(path)):
        return [where]
    spelled = glob.escape(str(path)).replace("[*]", "*").replace("[?]", "?")
    listed = [Path(name) for name in glob.glob(spelled)]  # noqa: PTH207  (keeps how the path is written)
    found = [each for each in listed if _is_lora(each, allow_pickle)]
    if not found:
        folder = where.parent
        near = sorted(folder.iterdir()) if not is_pattern(str(folder)) and folder.is_dir() else []
        hint = did_you_mean(
            where.name.strip("*?"), [each.stem for each in near if _is_lora(each, allow_pickle)]
        )
        raise ParameterError(f"no LoRA matches {shown(str(path))}{hint}")
    return in_epoch_order(found)


def is_pattern(name: str) -> bool:
    """Return True for a name with ``*`` or ``?``."""
    return "*" in name or "?" in name


def matcher(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern with forward slashes; ``*`` does not go beyond a folder."""
    parts = re.split(r"(\*+|\?)", pattern)
    found = [
        ("[^/]*" if part[0] == "*" else "[^/]") if is_pattern(part) else re.escape(part)
        for part in parts
        if part
    ]
    return re.compile("".join(found), re.DOTALL)


def in_epoch_order(paths: Sequence[_Path]) -> list[_Path]:
    """Return paths of LoRAs from the oldest epoch to the newest, by the numbers in their names.

    The last epoch of a training often has no number; it comes after those that are called like it.
    """
    stems = {
        path: path.name.removesuffix(path.suffix) if path.suffix in _ENDINGS else path.name for path in paths
    }
    numbered = {stem: _NUMBERED.fullmatch(stem) for stem in stems.values()}
    bases = {found[1].casefold() for found in numbered.values() if found}

    def key(path: _Path) -> tuple[object, ...]:
        stem = stems[path]
        found = numbered[stem]
        if found is None or stem.casefold() in bases:
            return _natural(stem), 1, 0, stem
        return _natural(found[1]), 0, int(found[2]), stem

    return sorted(paths, key=key)


def _natural(text: str) -> list[tuple[str, int]]:
    parts = re.split(r"(\d+)", text.casefold())
    return [(word, int(number)) for word, number in zip(parts[::2], [*parts[1::2], "0"], strict=True)]


def _in_folder(folder: Path, allow_pickle: bool) -> list[Path]:
    if any((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLED_NAME)):
        return []
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise LoraFormatError(
            f"{folder.name}: the folder cannot be read: {error.strerror or error}"
        ) from error
    loras = [child for child in children if _is_lora(child, allow_pickle)]
    files = [lora for lora in loras if not lora.is_dir()]
    folders = [lora for lora in loras if lora.is_dir()]
    matches = [_NUMBERED.fullmatch(each.name) for each in folders]
    one_training = len({found[1] for found in matches if found}) == 1 and all(matches)
    return files or (folders if one_training and len(folders) > 1 else [])


def _is_lora(path: Path, allow_pickle: bool) -> bool:
    if path.is_dir():
        return (path / CONFIG_NAME).is_file()
    endings = _ENDINGS + _PICKLED if allow_pickle else _ENDINGS
    return path.suffix.lower() in endings and path.is_file()
