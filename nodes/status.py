"""What a node says: what it is doing while it runs, and at the end what came out.

``web/js/node/report.js`` draws both on the node. The result is also in the history, under ``text``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from comfy_api.latest import io

from ..merge_ops.errors import escaped
from .model.core import running_server

_EVERY = 0.2  # least seconds between two lines
_PROGRESS = "lora_alloy.progress"  # the message to the editor

# For the schema of a node that says something: what a cached run said is sent again, for example to a page
# that was loaded anew. Output nodes do so anyway; ComfyUI before 0.19 does not know it.
_RESENT = "has_intermediate_output"
SAYS: dict[str, Any] = {_RESENT: True} if _RESENT in {field.name for field in fields(io.Schema)} else {}


class StatusLine:
    """Sends text to the running node if there is a server; without one it only keeps the time."""

    def __init__(self, node: type[Any]) -> None:
        self._node_id = getattr(node.hidden, "unique_id", None)
        self._started = time.monotonic()
        self._sent = self._started - _EVERY  # the first line is shown at once

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
        if not self.is_due:
            return
        self._sent = time.monotonic()
        server = running_server()
        if server is not None and self._node_id is not None:
            line = {"node": self._node_id, "text": escaped(f"{text}, {self.seconds:.0f} s")}
            server.send_sync(_PROGRESS, line, server.client_id)


class Said:
    """The ``ui`` of a node: its result, and below it what the user should know."""

    def __init__(self, text: str, warnings: Iterable[str] = ()) -> None:
        self.warnings = [escaped(line) for line in warnings]
        self.text = "\n".join([escaped(text), *self.warnings])

    def as_dict(self) -> dict[str, list[str]]:
        """``text`` holds all of it; ``warnings`` names the lines of it that the editor sets apart."""
        return {"text": [self.text], "warnings": self.warnings}
