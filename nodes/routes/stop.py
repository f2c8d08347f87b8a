"""``POST /lora_alloy/stop`` with ``{"node": "12"}``, or with ``{}`` for every training, ends a training.

It answers ``{"stopped": 1}``: how many trainings were told to stop. ``GET`` answers ``{"running": ["12"]}``.
"""

from __future__ import annotations

from typing import Any

from ..model.stopping import list_running, stop

PATH = "/lora_alloy/stop"


def add(routes: Any) -> None:
    """Add the request to a route table of aiohttp."""
    from aiohttp import web

    @routes.post(PATH)
    async def post(request: web.Request) -> web.Response:
        try:
            given = await request.json() if request.can_read_body else {}
        except ValueError:
            given = None
        if not isinstance(given, dict):
            return web.json_response({"error": "the body is not a JSON object"}, status=400)
        node = given.get("node")
        return web.json_response({"stopped": stop(None if node is None else str(node))})

    @routes.get(PATH)
    async def get(_request: web.Request) -> web.Response:
        return web.json_response({"running": list_running()})
