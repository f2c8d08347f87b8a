"""What was read of files, kept until they change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

from .companions import State, state_of

T = TypeVar("T")


class Remembered(Generic[T]):
    """What ``read`` gave for LoRA files, ``most`` at most, until they or what lies beside them change."""

    def __init__(self, read: Callable[[Path], T], most: int) -> None:
        self._read, self._most = read, most
        self._held: dict[Path, tuple[State, T]] = {}  # the least recently read first
        self._lock = Lock()

    def of(self, path: Path) -> T:
        """Return it, and read it again where that is needed."""
        state = state_of(path)
        with self._lock:
            held = self._held.get(path)
        if held is not None and held[0] == state:
            return held[1]
        made = self._read(path)
        with self._lock:
            self._held.pop(path, None)
            self._held[path] = (state, made)
            while len(self._held) > self._most:
                del self._held[next(iter(self._held))]
        return made
