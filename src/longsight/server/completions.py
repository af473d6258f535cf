"""POST /v1/completions: text in, text out, no chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from anyio import to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from longsight.server.answers import Choice
from longsight.server.body import read_text, unless_gone
from longsight.server.chat_completions import collect
from longsight.server.errors import as_api_error, invalid
from longsight.server.exchange import Exchange
from longsight.server.openai import TextEnvelope, TextStream, usage
from longsight.server.schema import MAX_PROMPTS, CompletionFields, answer_format, parse
from longsight.server.service import Service
from longsight.server.sse import DONE, KEEP_ALIVE, EventStream, frame

MAX_TOKENS = 16  # the protocol's default


async def completions(http: HttpRequest) -> Response:
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    fields, choices = await to_thread.run_sync(_prepare, service, body)
    exchange = Exchange(http, "completions", stream=bool(fields.stream))
    exchange.submit(choices)
    envelope = TextEnvelope(fields.model, service.tokenizer.decode)
    if fields.stream:
        return EventStream(_frames(exchange, fields, envelope), exchange.close, exchange.headers())
    try:
        answers = await unless_gone(http, collect(exchange))
    finally:
        await exchange.close()
    return JSONResponse(envelope.whole(answers, usage(exchange.usage, exchange)), headers=dict(exchange.headers()))


def _prepare(service: Service, body: str) -> tuple[CompletionFields, list[Choice]]:
    fields = parse(CompletionFields, body)
    service.check_model(fields.model)
    params = replace(fields.sampling(service.defaults), grammar=answer_format(fields.response_format))
    prompts = [service.tokenizer.encode(p) if isinstance(p, str) else p for p in fields.prompts()]
    choices: list[Choice] = []
    for tokens in prompts:
        length = service.answer_length(len(tokens), fields.max_tokens, MAX_TOKENS)
        choices += [
            Choice(request, len(choices) + i)
            for i, request in enumerate(service.requests(tokens, replace(params, max_tokens=length)))
        ]
        if len(choices) > MAX_PROMPTS:
            raise invalid(f"{len(prompts)} prompts with n {fields.n} ask for more than {MAX_PROMPTS} answers", "n")
    return fields, choices


async def _frames(exchange: Exchange, fields: CompletionFields, envelope: TextEnvelope) -> AsyncIterator[bytes]:
    """A stream's frames. An error once it has begun is its last frame, and no [DONE] follows."""
    until_usage: dict[str, Any] = {"usage": None} if fields.include_usage else {}
    streams = [TextStream(envelope, i) for i in range(len(exchange.choices))]
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
