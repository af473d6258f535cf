"""How both generating endpoints of OpenAI's protocol answer, in one piece or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import JSONResponse, Response

from longsight.server.body import unless_gone
from longsight.server.errors import as_api_error
from longsight.server.exchange import Exchange
from longsight.server.openai import Answer, ChatEnvelope, ChatStream, TextEnvelope, TextStream, usage
from longsight.server.schema import CommonFields
from longsight.server.sse import DONE, KEEP_ALIVE, EventStream, frame


async def answer(exchange: Exchange, fields: CommonFields, envelope: ChatEnvelope | TextEnvelope) -> Response:
    """The response to a submitted exchange, as `fields` ask for it."""
    if fields.stream:
        return EventStream(_frames(exchange, fields, envelope), exchange.close, exchange.headers())
    try:
        answers = await unless_gone(exchange.http, _collect(exchange))
    finally:
        await exchange.close()
    return JSONResponse(envelope.whole(answers, usage(exchange.usage, exchange)), headers=dict(exchange.headers()))


async def _collect(exchange: Exchange) -> list[Answer]:
    """The finished answers, in order."""
    answers = [Answer() for _ in exchange.choices]
    async for piece in exchange.pieces():
        if piece is not None:
            answers[piece.index].add(piece)
    return answers


async def _frames(
    exchange: Exchange, fields: CommonFields, envelope: ChatEnvelope | TextEnvelope
) -> AsyncIterator[bytes]:
    """A stream's frames. An error once it has begun is its last frame, and no [DONE] follows."""
    until_usage: dict[str, Any] = {"usage": None} if fields.include_usage else {}
    streams = [
        ChatStream(envelope, i) if isinstance(envelope, ChatEnvelope) else TextStream(envelope, i)
        for i in range(len(exchange.choices))
    ]
    try:
        async for piece in exchange.pieces(exchange.service.keep_alive):
            if piece is None:
                yield KEEP_ALIVE
                continue
            if piece.progress is not None and fields.return_progress:
                processed, total = piece.progress
                progress = {"processed": processed, "total": total, "index": piece.index}
                yield frame(envelope.chunk([], prompt_progress=progress, **until_usage))
            for choice in streams[piece.index].choices(piece):
                yield frame(envelope.chunk([choice], **until_usage))
        if fields.include_usage:
            yield frame(envelope.chunk([], usage=usage(exchange.usage, exchange)))
        yield DONE
    except Exception as error:
        yield frame(as_api_error(error).body())
