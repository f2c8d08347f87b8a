"""The line of text on a running node: what it is doing, and at the end what came out."""

from __future__ import annotations

import time
from typing import Any

from ..merge_ops.errors import escaped
from .model.core import running_server

_EVERY = 0.2  # least seconds between two lines


class StatusLine:
    """Sends text to the running node if there is a server; without one it only keeps the time."""

    def __init__(self, node: type[Any]) -> None:
        self._node_id = getattr(node.hidden, "unique_id", None)
        self._started = self._sent = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the line was made."""
        return time.monotonic() - self._started

    @property
    def is_due(self) -> bool:
        """True if the last line is long enough ago for another one."""
        return time.monotonic() - self._sent >= _EVERY

    def show_progress(self, text: str) -> None:
        """Show what is being done and for how long, unless the last line is too recent."""
        if self.is_due:
            self._sent = time.monotonic()
            self.show(f"{text}, {self.seconds:.0f} s")

    def show(self, text: str) -> None:
        """Show the text now."""
        server = running_server()
        if server is not None and self._node_id is not None:
            server.send_progress_text(escaped(text), self._node_id)
