"""The line of text on a running node: what it is doing, and in the end what came out."""

from __future__ import annotations

import sys
import time
from typing import Any

_EVERY = 0.2  # seconds between two lines at least


class StatusLine:
    """Sends text to the node that is running, where there is a server; without one it only keeps the time."""

    def __init__(self, node: type[Any]) -> None:
        self._node_id = getattr(node.hidden, "unique_id", None)
        self._started = self._sent = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since this was made."""
        return time.monotonic() - self._started

    def progress(self, text: str) -> None:
        """Show what is being done, if the last line is not too fresh."""
        now = time.monotonic()
        if now - self._sent >= _EVERY:
            self._sent = now
            self.show(text)

    def show(self, text: str) -> None:
        """Show this now."""
        # ComfyUI's main script has imported its server; without it there is nobody to send to
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        if server is not None and self._node_id is not None:
            server.send_progress_text(text, self._node_id)
