"""Server-sent events: frames, and a response that frees its requests however it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
# nginx and proxies that follow it collect an answer and pass it on in lumps, unless they are told not to.
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def frame(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def event_frame(data: Mapping[str, Any]) -> bytes:
    """For protocols that name their events; the name is the data's `type`."""
    return f"event: {data['type']}\n".encode() + frame(data)


class EventStream(StreamingResponse):
    """Streams frames; `on_end` runs when the stream ends, fails, or the client goes away."""

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        on_end: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(frames, media_type="text/event-stream", headers={**HEADERS, **(headers or {})})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._on_end()
