"""What a LoRA is, for the editor. Reads headers and notes, writes nothing.

``GET /lora_alloy/info?name=NAME`` answers what is known of one LoRA; ``GET /lora_alloy/preview?name=NAME`` is
the picture beside its file. ``POST /lora_alloy/bases`` with ``{"names": [...]}`` answers ``{"bases": {NAME:
"SDXL"}}``: the base model of each, null where it is unknown. Names are looked up among the files that ComfyUI
lists, so that one that leads out of the loras folders is as unknown as any other: 404.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...merge_ops.errors import MergeError, ParameterError
from ..model.files.companions import MAX_PICTURE, PICTURES, find_picture, find_video
from ..model.files.lora_files import find_path
from .bodies import in_thread, read_body, refusing

PATH = "/lora_alloy"
_MAX_NAMES = 500  # of one request
_MAX_NAME = 4096


def describe(name: str) -> dict[str, Any]:
    """Return what the card shows, with the address of the picture; see ``describe_lora``."""
    from ..model.files.lora_info import describe_lora

    facts = describe_lora(name)
    path = find_path(name)
    picture, video = find_picture(path), find_video(path)
    address = facts.pop("thumbnail")
    if picture is not None:
        address = f"{PATH}/preview?name={quote(name, safe='')}&changed={picture.stat().st_mtime_ns}"
    return {"name": name, **facts, "preview": address, "video": None if video is None else video.name}


def read_picture(path: Path) -> tuple[bytes, str, float]:
    """Return what is in the file, a tag that changes with it, and when it was changed."""
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        return file.read(MAX_PICTURE), f"{stat.st_mtime_ns:x}-{stat.st_size:x}", stat.st_mtime


def add(routes: Any) -> None:
    """Add the requests to a route table of aiohttp."""
    from aiohttp import web

    def refuse(message: str, status: int) -> web.Response:
        return web.json_response({"error": message}, status=status)

    def asked(request: web.Request) -> str | None:
        name = request.query.get("name", "")
        return name if name and len(name) <= _MAX_NAME and "\0" not in name else None

    @routes.get(f"{PATH}/info")
    async def info(request: web.Request) -> web.Response:
        name = asked(request)
        if name is None:
            return refuse("the name of a LoRA file is missing", 400)
        try:
            return web.json_response(await in_thread(describe, name), headers={"Cache-Control": "no-cache"})
        except MergeError as error:
            return refuse(str(error), 404)
        except OSError as error:
            return refuse(f"the file cannot be read: {error.strerror}", 404)

    @routes.get(f"{PATH}/preview")
    async def preview(request: web.Request) -> web.StreamResponse:
        name = asked(request)
        if name is None:
            return refuse("the name of a LoRA file is missing", 400)
        try:
            picture = await in_thread(lambda: find_picture(find_path(name)))
            read = None if picture is None else await in_thread(read_picture, picture)
        except (MergeError, OSError):
            picture = read = None
        if picture is None or read is None:
            return refuse("there is no preview image beside this LoRA", 404)
        body, tag, changed = read
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}  # asks with the ETag
        kind = PICTURES[picture.suffix.lower()]
        given = [each.value for each in request.if_none_match or ()]
        answer = web.Response(status=304) if tag in given else web.Response(body=body, content_type=kind)
        answer.headers.update(headers)
        answer.etag, answer.last_modified = tag, changed
        return answer

    @routes.post(f"{PATH}/bases")
    @refusing
    async def bases(request: web.Request) -> web.Response:
        names = (await read_body(request)).get("names")
        if not isinstance(names, list) or not all(isinstance(n, str) and len(n) <= _MAX_NAME for n in names):
            raise ParameterError("the body must be a JSON object with a list of names")
        if len(names) > _MAX_NAMES:
            raise ParameterError(f"{len(names)} names at once; ask for at most {_MAX_NAMES}")
        return web.json_response({"bases": await in_thread(_bases, names)})


def _bases(names: list[str]) -> dict[str, str | None]:
    from ..model.files.lora_info import name_bases

    return name_bases(names)
