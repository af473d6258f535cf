"""The attention microscope: an answer together with the blocks that each sparse layer read for each of its tokens.

POST /v1/longsight/microscope runs a conversation or a text and returns tokens and selections; GET .../{id}/blocks
returns the text of blocks, from a record that is kept for some minutes. The selections of a token are small whatever
the context (blocks kept x groups x layers), and only the texts that somebody looks at are sent.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from anyio import to_thread
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from longsight.engine import Selection
from longsight.engine.text import Decoder, Detokenizer
from longsight.server.answers import Choice
from longsight.server.body import read_text, unless_gone
from longsight.server.chat_completions import turn_of
from longsight.server.errors import as_api_error, invalid
from longsight.server.exchange import Exchange
from longsight.server.identity import Caller, caller_of, require_root_scope
from longsight.server.openai import FINISH, usage
from longsight.server.schema import ChatFields, answer_format, parse
from longsight.server.scope_records import Record, Records
from longsight.server.service import Service
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
        fields, choice = await to_thread.run_sync(_prepare, service, body, caller_of(http))
        exchange = Exchange(http, "completions" if fields.prompt is not None else "openai")
        exchange.submit([choice])
        record = self.records.add(exchange.caller, choice.request.prompt, choice.request.output)
        opening = _opening(service, record)
        if fields.stream:
            return EventStream(_frames(exchange, opening), exchange.close, exchange.headers())
        try:
            tokens = await unless_gone(http, _collect(exchange))
        finally:
            await exchange.close()
        answer = {**opening, "tokens": tokens, **_closing(exchange)}
        return JSONResponse(answer, headers=dict(exchange.headers()))

    async def blocks(self, http: HttpRequest) -> Response:
        """The texts of blocks `?ids=3,17,40`, with the tokens each one spans; the last block may be unfinished.

        A character whose bytes lie in two blocks shows as U+FFFD in both.
        """
        service: Service = http.app.state.service
        record = self.records.get(http.path_params["id"], caller_of(http))
        size = service.driver.engine.model.config.block_size
        length = record.length
        wanted = _block_ids(http.query_params.get("ids", ""), -(-length // size))

        def texts() -> list[dict[str, Any]]:
            spans = [(block, block * size, min((block + 1) * size, length)) for block in wanted]
            return [
                {"block": b, "start": start, "end": end, "text": service.tokenizer.decode(record.tokens(start, end))}
                for b, start, end in spans
            ]

        return JSONResponse({"object": "list", "data": await to_thread.run_sync(texts)})


def _prepare(service: Service, body: str, caller: Caller) -> tuple[MicroscopeFields, Choice]:
    """On a worker thread: a long prompt takes a while to read."""
    fields = parse(MicroscopeFields, body)
    fields.check()
    fields.model = fields.model or service.model_id
    if fields.prompt is not None:
        service.check_model(fields.model)
        tokens = service.tokenizer.encode(fields.prompt)
        length = service.answer_length(len(tokens), fields.answer_limit(), DEFAULT_TOKENS)
        grammar = answer_format(fields.response_format)
        params = replace(fields.sampling(service.defaults), max_tokens=length, grammar=grammar)
        (request,) = service.requests(tokens, params)
        choice = Choice(request=request, index=0)
    else:
        turn = turn_of(fields, service)
        require_root_scope(caller, turn.messages)
        (choice,) = service.choices(turn)
        request = choice.request
        if fields.answer_limit() is None:
            request.params = replace(request.params, max_tokens=min(request.max_tokens, DEFAULT_TOKENS))
    request.record_selection = True
    return fields, choice


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


def _closing(exchange: Exchange) -> dict[str, Any]:
    (choice,) = exchange.choices
    finish = None if choice.finish is None else FINISH[choice.finish]
    return {"finish_reason": finish, "usage": usage(exchange.usage, exchange)}


class _Tokens:
    """The tokens of a choice that have not been shown yet, each with its selections.

    `text` is what the token adds to the answer as generated, markup included: empty for one that ends the answer or
    leaves a character unfinished.
    """

    def __init__(self, choice: Choice, decoder: Decoder) -> None:
        self._choice, self._index, self._seen = choice, 0, 0
        self._text = Detokenizer(decoder)

    def take(self) -> list[dict[str, Any]]:
        choice, request = self._choice, self._choice.request
        shown: list[dict[str, Any]] = []
        # The engine's thread may be ahead: choice.tokens counts those that are part of the answer.
        for index in range(self._index, choice.tokens):
            token = request.output[index]
            text = "" if token in request.stop_ids else self._text.push(token)
            read = [{"layer": s.layer, "blocks": s.blocks} for s in self._selections(index)]
            shown.append({"index": index, "token": token, "text": text, "selections": read})
        self._index += len(shown)
        if choice.finish is not None and shown:
            shown[-1]["text"] += self._text.flush()
        return shown

    def _selections(self, index: int) -> Sequence[Selection]:
        start, known = self._seen, self._choice.request.selections
        while self._seen < len(known) and known[self._seen].token_index <= index:
            self._seen += 1
        return known[start : self._seen]


async def _collect(exchange: Exchange) -> list[dict[str, Any]]:
    tokens = _Tokens(exchange.choices[0], exchange.service.tokenizer)
    async for _ in exchange.pieces():
        pass
    return tokens.take()


async def _frames(exchange: Exchange, opening: dict[str, Any]) -> AsyncIterator[bytes]:
    """Events start, progress, token and end. An error is the last frame, and no [DONE] follows."""
    tokens = _Tokens(exchange.choices[0], exchange.service.tokenizer)
    try:
        yield frame({"type": "start", **opening})
        async for piece in exchange.pieces(exchange.service.keep_alive):
            if piece is None:
                yield KEEP_ALIVE
                continue
            if piece.progress is not None:
                processed, total = piece.progress
                yield frame({"type": "progress", "processed": processed, "total": total})
            for token in tokens.take():
                yield frame({"type": "token", **token})
        yield frame({"type": "end", **_closing(exchange)})
        yield DONE
    except Exception as error:
        yield frame(as_api_error(error).body())
