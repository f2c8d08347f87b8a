"""Which files a name in the list may mean. Needs neither ComfyUI nor torch."""

from __future__ import annotations

from collections.abc import Sequence


def find_files(name: str, files: Sequence[str]) -> list[str]:
    """Find the files that ``name`` may mean, with or without folder and ``.safetensors``.

    A name with a folder means one place below the loras folders, or nothing. If no file is in that place and
    several elsewhere are called so, these are returned, so that the error can list them.
    """
    wanted = use_forward_slashes(name)
    by_name = {use_forward_slashes(file): file for file in reversed(files)}
    for full in (wanted, f"{wanted}.safetensors", f"{wanted}/adapter_model.safetensors"):
        if full in by_name:
            return [by_name[full]]
    base = wanted.rpartition("/")[2]
    spellings = (base, f"{base}.safetensors")
    alike = [file for file in files if use_forward_slashes(file).rpartition("/")[2] in spellings]
    return [] if "/" in wanted and len(alike) == 1 else alike


def use_forward_slashes(name: str) -> str:
    """Return a file name with the slashes that the list uses on every system."""
    return name.replace("\\", "/")
