"""Request bodies: read up to a limit, watch for the client going away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from longsight.server.errors import invalid, too_large

T = TypeVar("T")
# A client that is sending too much is let finish, within bounds, and what it sends is thrown away: closing at once
# would make many clients report a broken connection instead of the refusal.
DRAIN_BYTES = 256 * 2**20


class ClientGoneError(Exception):
    """The client closed the connection before its answer was ready."""


async def read_text(request: Request, limit: int) -> str:
    """The body as text. Raises ApiError 413 over `limit` bytes, counted while they arrive, or 400 if it isn't UTF-8."""
    declared = request.headers.get("content-length", "")
    too_long = declared.isdecimal() and int(declared) > limit
    body, received = bytearray(), 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            too_long = True
            body.clear()
        if received > limit + DRAIN_BYTES:
            break
        if not too_long:
            body += chunk
    if too_long:
        raise too_large(limit)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"the request body is not valid UTF-8 at byte {error.start}: {error.reason}") from error


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled, with ClientGoneError, if the client goes away first.

    The body must have been read already: the next message is then the disconnect.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for future in (task, watch):
            future.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
