"""``POST /lora_alloy/find``: whether a file that was dropped on the list lies in the loras folders.

The body is ``{"name": "mia.safetensors", "size": 1234, "sample": BASE64, "keys": [...]}``: ``sample`` has the
bytes from the middle of the file, up to 4,096 of them, and ``keys`` the names of its tensors. The answer is
``{"alike": 1, "folder": "models/loras", "problem": null}``: how many files may be it, where it belongs
otherwise, and what it is if it is no LoRA. With ``"sha256"`` of the whole file it is ``{"found": NAME}`` or
``{"found": null}`` besides. Only files of that size are opened.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import PurePosixPath
from typing import Any

from ...merge_ops.errors import LoraFormatError, ParameterError
from .bodies import in_thread, read_body, refusing

PATH = "/lora_alloy/find"
_MAX_KEYS = 20_000


def add(routes: Any) -> None:
    """Add the request to a route table of aiohttp."""
    from aiohttp import web

    @routes.post(PATH)
    @refusing
    async def post(request: web.Request) -> web.Response:
        asked = await read_body(request)
        return web.json_response(await in_thread(_answer, asked))


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    from ..model.files.contents import find_content, list_alike, name_of_folder

    size, keys, sha256 = asked.get("size"), asked.get("keys", []), asked.get("sha256")
    if not isinstance(size, int) or size < 0:
        raise ParameterError("size must be the number of bytes in the file")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ParameterError("keys must be the names of the tensors in the file")
    alike = list_alike(size, _sample(asked.get("sample", "")))
    answer: dict[str, Any] = {"alike": len(alike), "folder": name_of_folder(), "problem": _problem(keys)}
    if sha256 is not None:
        called = PurePosixPath(str(asked.get("name", ""))).name
        answer["found"] = find_content(alike, str(sha256).lower(), called)
    return answer


def _sample(text: Any) -> bytes:
    from ..model.files.contents import SAMPLE

    try:
        sample = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ParameterError("sample must be bytes in base64") from error
    if len(sample) > SAMPLE:
        raise ParameterError(f"sample must have at most {SAMPLE} bytes")
    return sample


def _problem(keys: list[str]) -> str | None:
    """What a file with these tensors is, if it is no LoRA."""
    from ...merge_ops.formats.lookalike import refuse_by_keys

    try:
        refuse_by_keys(set(keys[:_MAX_KEYS]))
    except LoraFormatError as error:
        return str(error)
    return None
