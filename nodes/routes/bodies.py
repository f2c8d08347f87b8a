"""What requests have in common: a checked JSON object, work in a thread, and errors that become answers."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ...merge_ops.errors import MergeError, ParameterError

T = TypeVar("T")
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


async def in_thread(function: Callable[..., T], *given: Any) -> T:
    """Call a function that reads files, while the server goes on answering."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *given)


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
