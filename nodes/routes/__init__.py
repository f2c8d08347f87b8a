"""What the pack's own requests answer, below ``/lora_alloy`` of ComfyUI's server."""

from __future__ import annotations

from ..model.core import running_server
from . import base_of_model, blocks, find, info, recipe, stop

_ROUTES = (base_of_model, blocks, find, info, recipe, stop)


def add_routes() -> None:
    """Add the requests to ComfyUI's server, if there is one."""
    server = running_server()
    if server is not None:
        for module in _ROUTES:
            module.add(server.routes)
