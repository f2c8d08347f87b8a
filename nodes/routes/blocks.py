"""``GET /lora_alloy/blocks?name=NAME&text=TEXT``: the blocks of a LoRA file, for the sliders of its row.

It answers ``{"blocks": [...], "groups": {...}, "sorts": [...], "values": {...}, "exact": true}``. A block has
its selector as ``name``, the ``group`` that it is in, its ``number``, how many ``layers`` it has, and the
``norm`` of its change (null where that depends on the base model). ``values`` are what TEXT sets each block
and sort to; ``exact`` is false where it says more than these can. ``problem`` says why it cannot be read.
"""

from __future__ import annotations

from typing import Any

from ...merge_ops.errors import MergeError
from .bodies import in_thread

PATH = "/lora_alloy/blocks"


def add(routes: Any) -> None:
    """Add the request to a route table of aiohttp."""
    from aiohttp import web

    @routes.get(PATH)
    async def get(request: web.Request) -> web.Response:
        name, text = request.query.get("name", ""), request.query.get("text", "")
        if not name:
            return web.json_response({"error": "the request has no name of a LoRA file"}, status=400)
        try:
            return web.json_response(await in_thread(_answer, name, text))
        except (MergeError, OSError) as error:
            return web.json_response({"error": str(error)}, status=400)


def _answer(name: str, text: str) -> dict[str, Any]:
    from ..model.files.block_norms import describe_blocks

    return describe_blocks(name, text)
