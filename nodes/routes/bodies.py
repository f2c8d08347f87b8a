"""What requests send: a JSON object, of a size that is checked, and errors that become answers."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from ...merge_ops.errors import MergeError, ParameterError

_MAX_BODY = 8 << 20  # bytes: a text of a recipe has at most 4 MiB


async def read_body(request: Any) -> dict[str, Any]:
    """Read the JSON object of a request.

    Raises:
        ParameterError: if it is none, or too large.
    """
    if (request.content_length or 0) > _MAX_BODY:
        raise ParameterError("the body of the request is too large")
    try:
        body = await request.json() if request.can_read_body else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ParameterError("the body of the request is not a JSON object")
    return body


def refusing(answer: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """Let a request that raises a MergeError answer 400 with ``{"error": sentence}``."""
    from aiohttp import web

    @functools.wraps(answer)
    async def checked(request: web.Request) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await answer(request)
        except MergeError as error:
            return web.json_response({"error": str(error)}, status=400)
        return response

    return checked
