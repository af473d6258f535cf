"""The attention microscope: an answer together with the blocks that each sparse layer read for each of its tokens.

POST /v1/longsight/microscope runs a prompt and returns tokens and selections; GET .../{id}/blocks returns the text of
blocks, from a record that is kept for some minutes. The selections of a token are small whatever the context (blocks
kept x groups x layers), and only the texts somebody looks at are sent.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from longsight.engine import Request, Selection, Stream, Update
from longsight.server.body import read_text, unless_gone
from longsight.server.errors import as_api_error, invalid
from longsight.server.generation import Service
from longsight.server.identity import caller_of
from longsight.server.openai import usage
from longsight.server.schema import ChatFields, parse
from longsight.server.scope_records import Record, Records
from longsight.server.sse import DONE, KEEP_ALIVE, EventStream, frame

PATH = "/v1/longsight/microscope"
MAX_TOKENS = 256
DEFAULT_TOKENS = 64
MAX_BLOCKS = 64  # texts per request


class MicroscopeFields(ChatFields):
    """The chat endpoint's fields; `prompt`, plain text, may stand in place of the messages."""

    model: str = ""
    messages: list[Any] = Field(default_factory=list)
    prompt: str | None = None

    def check(self) -> None:
        """Raises ApiError 400 for what the microscope cannot show."""
        if (self.prompt is None) == (not self.messages):
            raise invalid("the microscope needs either messages or prompt, and not both", "messages")
        if self.n not in (None, 1):
            raise invalid(f"n is {self.n}; the microscope shows one answer, so n must be 1", "n")
        limit = self.answer_limit()
        if limit is not None and not 1 <= limit <= MAX_TOKENS:
            raise invalid(
                f"max_tokens is {limit}; the microscope takes an integer from 1 to {MAX_TOKENS}", "max_tokens"
            )


class Microscope:
    """The endpoints, and the records that the second one reads."""

    def __init__(self, records: Records | None = None) -> None:
        self.records = records or Records()

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self.run, methods=["POST"]),
            Route(PATH + "/{id}/blocks", self.blocks),
        ]

    async def run(self, http: HttpRequest) -> Response:
        """Generate up to 256 tokens and say what was read for each: whole, or as events where `stream` is true."""
        service: Service = http.app.state.service
        body = await read_text(http, service.body_limit)
        fields, request = await to_thread.run_sync(_prepare, service, body)
        stream = service.driver.submit([request])
        record = self.records.add(caller_of(http), request.prompt, request.output)
        opening = _opening(service, record)
        if fields.stream:
            return EventStream(_frames(service, stream, opening), stream.close)
        try:
            tokens = await unless_gone(http, _collect(service, stream))
        finally:
            stream.close()
        return JSONResponse({**opening, "tokens": tokens, **_closing(request)})

    async def blocks(self, http: HttpRequest) -> Response:
        """The texts of blocks `?ids=3,17,40`, with the tokens each one spans; the last block may be unfinished.

        A character whose bytes lie in two blocks shows as U+FFFD in both.
        """
        service: Service = http.app.state.service
        record = self.records.get(http.path_params["id"], caller_of(http))
        size = service.driver.engine.model.config.block_size
        wanted = _block_ids(http.query_params.get("ids", ""), -(-record.length // size))

        def texts() -> list[dict[str, Any]]:
            spans = [(block, block * size, min((block + 1) * size, record.length)) for block in wanted]
            return [
                {"block": b, "start": start, "end": end, "text": service.tokenizer.decode(record.tokens(start, end))}
                for b, start, end in spans
            ]

        return JSONResponse({"object": "list", "data": await to_thread.run_sync(texts)})


def _prepare(service: Service, body: str) -> tuple[MicroscopeFields, Request]:
    """On a worker thread: a long prompt takes a while to read."""
    fields = parse(MicroscopeFields, body)
    fields.check()
    if fields.model:
        service.check_model(fields.model)
    if fields.prompt is not None:
        tokens = service.tokenizer.encode(fields.prompt)
    else:
        messages = fields.plain_messages()
        if service.chat_template is None:
            raise invalid(
                f"the model {service.model_id!r} has no chat template; send prompt", "messages", "no_chat_template"
            )
        tokens = service.tokenizer.encode(service.chat_template.render(messages), add_special_tokens=False)
    room = service.driver.engine.max_model_len - len(tokens)
    request = Request(tokens, fields.sampling(service.defaults, min(DEFAULT_TOKENS, room)), record_selection=True)
    service.driver.engine.check(request)
    return fields, request


def _block_ids(text: str, blocks: int) -> list[int]:
    parts = text.split(",")
    if len(parts) > MAX_BLOCKS:
        raise invalid(f"ids names {len(parts)} blocks; one request may ask for up to {MAX_BLOCKS}", "ids")
    ids = []
    for part in parts:
        # Longer digits would be no block of any context, and slow to read.
        if not (part.isascii() and part.isdigit() and len(part) <= 9 and int(part) < blocks):
            raise invalid(f"ids holds {part[:80]!r}; this run has blocks 0 to {blocks - 1}, written as 0,1,2", "ids")
        ids.append(int(part))
    return ids


def _opening(service: Service, record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "longsight.microscope",
        "created": int(time.time()),
        "model": service.model_id,
        "block_size": service.driver.engine.model.config.block_size,
        "prompt_tokens": len(record.prompt),
    }


def _closing(request: Request) -> dict[str, Any]:
    counted = usage(len(request.prompt), len(request.output), request.cached_tokens)
    return {"finish_reason": request.finish_reason, "usage": counted}


class _Tokens:
    """Tokens of one request as they are shown, each with its selections. `text` is the part of the answer that became
    final with the token: empty for one that ends the answer or leaves a character unfinished."""

    def __init__(self) -> None:
        self._index = self._seen = 0

    def take(self, update: Update) -> list[dict[str, Any]]:
        shown = []
        for i, token in enumerate(update.tokens):
            text = update.text if i == len(update.tokens) - 1 else ""
            read = [{"layer": s.layer, "blocks": s.blocks} for s in self._selections(update.request)]
            shown.append({"index": self._index, "token": token, "text": text, "selections": read})
            self._index += 1
        return shown

    def _selections(self, request: Request) -> list[Selection]:
        # The engine's thread may be a token ahead already: only this token's are taken.
        start, known = self._seen, request.selections
        while self._seen < len(known) and known[self._seen].token_index <= self._index:
            self._seen += 1
        return known[start : self._seen]


async def _collect(service: Service, stream: Stream) -> list[dict[str, Any]]:
    tokens, shown = _Tokens(), []
    async for update in stream.updates():
        if update is not None:
            if update.error is not None:
                raise update.error
            shown += tokens.take(update)
    return shown


async def _frames(service: Service, stream: Stream, opening: dict[str, Any]) -> AsyncIterator[bytes]:
    """Events start, progress, token and end. An error is the last frame, and no [DONE] follows."""
    tokens = _Tokens()
    (request,) = stream.requests
    processed = 0
    try:
        yield frame({"type": "start", **opening})
        async for update in stream.updates(service.keep_alive):
            if update is None:
                yield KEEP_ALIVE
                continue
            if update.error is not None:
                raise update.error
            if update.processed > processed:
                processed = update.processed
                yield frame({"type": "progress", "processed": processed, "total": len(request.prompt)})
            for token in tokens.take(update):
                yield frame({"type": "token", **token})
        yield frame({"type": "end", **_closing(request)})
        yield DONE
    except Exception as error:
        yield frame(as_api_error(error).body())
