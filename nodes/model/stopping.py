"""Stopping a training and keeping what it has learned: by the button of its node, or by a request.

``POST /lora_alloy/stop`` with ``{"node": "12"}``, or with ``{}`` for every training, answers
``{"stopped": 1}``: how many trainings were told to stop. ``GET`` answers ``{"running": ["12"]}``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .core import running_server

PATH = "/lora_alloy/stop"
_running: dict[str, threading.Event] = {}  # by the id of the node; ComfyUI runs nodes in another thread


@contextmanager
def stoppable(node_id: str | None) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether the training of this node was asked to stop."""
    asked = threading.Event()
    name = str(node_id)
    _running[name] = asked
    try:
        yield asked.is_set
    finally:
        if _running.get(name) is asked:
            del _running[name]


def stop(node_id: str | None = None) -> int:
    """Ask the training of a node to stop, or all; return how many there were.

    A node inside of a subgraph may be named by its own number alone.
    """
    asked = [
        event
        for name, event in list(_running.items())
        if node_id is None or name == node_id or name.endswith(f":{node_id}")
    ]
    for event in asked:
        event.set()
    return len(asked)


def add_route() -> None:
    """Add the request to ComfyUI's server, if there is one."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def post(request: web.Request) -> web.Response:
        try:
            given = await request.json() if request.can_read_body else {}
        except ValueError:
            given = None
        if not isinstance(given, dict):
            return web.json_response({"error": "the body is not a JSON object"}, status=400)
        node = given.get("node")
        return web.json_response({"stopped": stop(None if node is None else str(node))})

    async def get(_request: web.Request) -> web.Response:
        return web.json_response({"running": list(_running)})

    server.routes.post(PATH)(post)
    server.routes.get(PATH)(get)
