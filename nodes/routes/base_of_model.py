"""``GET /lora_alloy/base_of_model?kind=checkpoints&name=FILE`` says which model a loader's file holds.

It answers ``{"base": "SDXL", "fits": ["SDXL", "Pony"]}``: a name, and the base models of LoRAs that fit.
Where it is unknown they are null and empty. The kind is the folder, ``checkpoints`` or ``diffusion_models``.
"""

from __future__ import annotations

from typing import Any

from ..model.files.checkpoint_bases import FOLDERS, architecture_of_file
from .bodies import in_thread

PATH = "/lora_alloy/base_of_model"


def add(routes: Any) -> None:
    """Add the request to a route table of aiohttp."""
    from aiohttp import web

    @routes.get(PATH)
    async def get(request: web.Request) -> web.Response:
        kind, name = request.query.get("kind", ""), request.query.get("name", "")
        if kind not in FOLDERS or not name:
            error = f"kind is one of {', '.join(FOLDERS)}, and name is that of a file"
            return web.json_response({"error": error}, status=400)
        return web.json_response(await in_thread(_answer, kind, name))


def _answer(kind: str, name: str) -> dict[str, Any]:
    from ..values.base_models import label_of, labels_of

    found = architecture_of_file(kind, name)
    return (
        {"base": None, "fits": []} if found is None else {"base": label_of(found), "fits": labels_of(found)}
    )
