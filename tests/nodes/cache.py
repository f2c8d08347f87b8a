"""Large files for the tests, made once and kept for later runs.

They lie in the folder LORA_ALLOY_TEST_CACHE, or in pytest's own cache folder in the repository.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import filelock

ROOT = Path(__file__).parents[2]


def keep(name: str, sources: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """Return the folder that ``make(folder)`` fills; it is made anew only when ``sources`` change.

    Two runs or workers that need it at the same time wait for each other.
    """
    place = os.environ.get("LORA_ALLOY_TEST_CACHE") or ROOT / ".pytest_cache" / "lora_alloy"
    folder = Path(place) / f"{name}-{hashlib.sha256(b'|'.join(sources)).hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / f"{name}.lock"):
        if not folder.is_dir():
            for old in folder.parent.glob(f"{name}-*"):  # of other sources, or of a run that was stopped
                shutil.rmtree(old)
            part = Path(f"{folder}.part")
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def give(kept: Path, target: Path) -> None:
    """Put kept files under another folder: linked if the file system can, since they are large.

    LoRA files are copied: some checks write theirs under the same names.
    """

    def link_or_copy(source, destination):
        if "loras" not in Path(source).parts:
            try:
                os.link(source, destination)
                return
            except OSError:
                pass
        shutil.copy2(source, destination)

    shutil.copytree(kept, target, copy_function=link_or_copy, dirs_exist_ok=True)
