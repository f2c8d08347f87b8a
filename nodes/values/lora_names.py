"""Which files a name of the list may mean. Needs neither ComfyUI nor torch."""

from __future__ import annotations

from collections.abc import Sequence


def files_called(name: str, files: Sequence[str]) -> list[str]:
    """The files of ``files`` that ``name`` may mean, with or without folder and ``.safetensors``.

    A name with a folder means one place below the loras folders, or nothing; ``several/ink`` is answered by
    the files called ``ink`` only where they are several, so that the refusal can list them.
    """
    wanted = plain_name(name)
    plain = {plain_name(file): file for file in reversed(files)}
    for full in (wanted, f"{wanted}.safetensors", f"{wanted}/adapter_model.safetensors"):
        if full in plain:
            return [plain[full]]
    base = wanted.rpartition("/")[2]
    alike = [file for file in files if plain_name(file).rpartition("/")[2] in (base, f"{base}.safetensors")]
    return [] if "/" in wanted and len(alike) == 1 else alike


def plain_name(name: str) -> str:
    """With forward slashes, as the list is written on every system."""
    return name.replace("\\", "/")
