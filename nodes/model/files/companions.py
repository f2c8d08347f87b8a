"""The files beside a LoRA: sidecars with notes, and a picture. Only those inside the loras folders count."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ....merge_ops.formats.paths import CONFIG_NAME

PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
_VIDEOS = (".mp4", ".webm")
MAX_PICTURE = 32 << 20  # bytes

State = tuple[tuple[str, int, int], ...]  # name, time of the last change and size of each file


def find_sidecars(path: Path) -> list[Path]:
    """Return the sidecars that there are, those that are trusted most first."""
    from ....merge_ops.notes.sidecars import sidecar_paths

    return [each for each in sidecar_paths(path) if is_inside(each)]


def find_picture(path: Path) -> Path | None:
    """Return the picture beside a LoRA file: ``NAME.preview.png`` and the like, then ``NAME.png``."""
    names = (f"{path.stem}{middle}{end}" for middle in (".preview", "") for end in PICTURES)
    for name in names:
        picture = path.with_name(name)
        if is_inside(picture) and picture.stat().st_size <= MAX_PICTURE:
            return picture
    return None


def find_video(path: Path) -> Path | None:
    """Return the video that some programs write in place of a picture."""
    names = (f"{path.stem}{middle}{end}" for middle in (".preview", "") for end in _VIDEOS)
    return next((each for name in names if is_inside(each := path.with_name(name))), None)


def is_inside(path: Path) -> bool:
    """True for a file that is there and, wherever links lead, lies in a loras folder.

    ComfyUI shows the previews of models by the same rule.
    """
    if not path.is_file():
        return False
    real = os.path.realpath(path)
    for folder in folder_paths.get_folder_paths("loras"):
        root = os.path.realpath(folder)
        try:
            if os.path.commonpath((root, real)) == root:
                return True
        except ValueError:  # on another drive of Windows
            continue
    return False


def read_states(paths: Iterable[Path]) -> State:
    """Read what tells that files have changed; files that are not there are left out."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        found.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def state_of(path: Path) -> State:
    """Read what all that is shown of a LoRA depends on."""
    from ....merge_ops.notes.sidecars import sidecar_paths

    return read_states((path, path.with_name(CONFIG_NAME), *sidecar_paths(path)))
