"""A safetensors file that a recipe may have been made from: its names, and what its contents hash to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..formats.container import file_digest
from ..formats.paths import CONFIG_NAME, WEIGHTS_NAME
from .spelled import READINGS, trimmed, use_forward_slashes, without_ending

Reading = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A safetensors file in one of the folders. ``parts`` is its path, starting with that folder's name."""

    path: Path
    parts: tuple[str, ...]

    @property
    def config(self) -> Path | None:
        """The configuration next to it, if it is part of a PEFT folder."""
        config = self.path.with_name(CONFIG_NAME)
        return config if config.is_file() else None

    def is_called(self, name: str, reading: Reading = trimmed) -> bool:
        """Return True if a name, with or without folders and suffix, matches the file or its PEFT folder."""
        wanted = PurePosixPath(reading(use_forward_slashes(name))).parts
        spelled = [self.parts, (*self.parts[:-1], without_ending(self.path.name))]
        if self.path.name == WEIGHTS_NAME and self.config:
            spelled.append(self.parts[:-1])
        return any(tuple(map(reading, parts[-len(wanted) :])) == wanted for parts in spelled)

    def digests(self) -> dict[str, Path]:
        """Return the path to load by SHA-256: of the file, and of the file with its PEFT configuration.

        Empty if the file cannot be read.
        """
        try:
            paths = {file_digest(self.path): self.path}
            if self.config is not None:
                whole = self.path.parent if self.path.name == WEIGHTS_NAME else self.path
                paths[file_digest(self.path, self.config)] = whole
        except OSError:  # no use as a source, but no reason to stop the search
            return {}
        return paths


def files_called(name: str, files: Sequence[SourceFile]) -> list[SourceFile]:
    """Return the files of a name, or else those with it in another Unicode form or with other spaces."""
    for reading in READINGS:
        if called := [file for file in files if file.is_called(name, reading)]:
            return called
    return []
