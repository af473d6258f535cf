"""The two generating endpoints: body in, requests to the engine, answer or stream out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from anyio import to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from longsight.engine import EngineDriver, Request, SamplingDefaults, Stream, TokenLogprob, Update
from longsight.engine.request import requests_for
from longsight.server.body import read_text, unless_gone
from longsight.server.chat_template import ChatTemplate
from longsight.server.errors import ApiError, as_api_error, invalid
from longsight.server.openai import Answer, ChatDialect, Dialect, TextDialect, usage
from longsight.server.schema import MAX_PROMPTS, ChatFields, CommonFields, CompletionFields, parse
from longsight.server.sse import DONE, KEEP_ALIVE, EventStream, frame

COMPLETION_MAX_TOKENS = 16  # the protocol's default for /v1/completions


class Tokenizer(Protocol):
    """What the server needs of a tokenizer."""

    def encode(self, text: str, add_special_tokens: bool = True) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Service:
    """What the endpoints work with.

    chat_max_tokens: the length of a chat answer whose request doesn't say (its pages are reserved while it runs).
    body_limit: bytes. keep_alive: seconds of silence after which a stream says that it lives.
    """

    driver: EngineDriver
    tokenizer: Tokenizer
    model_id: str
    chat_template: ChatTemplate | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    chat_max_tokens: int = 4096
    body_limit: int = 64 * 2**20
    keep_alive: float = 10.0
    created: int = field(default_factory=lambda: int(time.time()))

    def check_model(self, model: str) -> None:
        if model != self.model_id:
            message = f"the model {model!r} does not exist; this server has {self.model_id!r}"
            raise ApiError(404, message, type="invalid_request_error", code="model_not_found", param="model")

    def requests(self, tokens: Sequence[int], fields: CommonFields, default_length: int) -> list[Request]:
        """One request per answer to a prompt, checked and its grammar compiled: on a worker thread, as parsing is."""
        engine = self.driver.engine
        params = fields.sampling(self.defaults, min(default_length, engine.max_model_len - len(tokens)))
        requests = requests_for(tokens, params)
        for request in requests:
            engine.check(request)
        return requests


Prepare = Callable[[Service, str], tuple[CommonFields, list[Request]]]


async def chat_completions(http: HttpRequest) -> Response:
    return await _answer(http, _prepare_chat, ChatDialect)


async def completions(http: HttpRequest) -> Response:
    return await _answer(http, _prepare_completions, TextDialect)


def _prepare_chat(service: Service, body: str) -> tuple[CommonFields, list[Request]]:
    fields = parse(ChatFields, body)
    service.check_model(fields.model)
    messages = fields.plain_messages()
    if service.chat_template is None:
        raise invalid(
            f"the model {service.model_id!r} has no chat template; use /v1/completions", "messages", "no_chat_template"
        )
    # The template writes the special tokens itself.
    tokens = service.tokenizer.encode(service.chat_template.render(messages), add_special_tokens=False)
    return fields, service.requests(tokens, fields, service.chat_max_tokens)


def _prepare_completions(service: Service, body: str) -> tuple[CommonFields, list[Request]]:
    fields = parse(CompletionFields, body)
    service.check_model(fields.model)
    prompts = [service.tokenizer.encode(p) if isinstance(p, str) else p for p in fields.prompts()]
    requests = [r for tokens in prompts for r in service.requests(tokens, fields, COMPLETION_MAX_TOKENS)]
    if len(requests) > MAX_PROMPTS:
        raise invalid(f"{len(prompts)} prompts with n {fields.n} ask for more than {MAX_PROMPTS} answers", "n")
    return fields, requests


async def _answer(http: HttpRequest, prepare: Prepare, dialect_type: type[Dialect]) -> Response:
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    # Parsing and tokenizing a megabyte takes a while: not on the loop that answers everyone else.
    fields, requests = await to_thread.run_sync(prepare, service, body)
    stream = service.driver.submit(requests)
    dialect = dialect_type(service.model_id, service.tokenizer.decode)
    if fields.stream:
        return EventStream(_frames(service, dialect, fields, stream), stream.close)
    try:
        answers = await unless_gone(http, _collect(stream))
    finally:
        stream.close()
    return JSONResponse(dialect.whole(answers, _usage(requests)))


async def _collect(stream: Stream) -> list[Answer]:
    texts: dict[Request, list[str]] = {request: [] for request in stream.requests}
    logprobs: dict[Request, list[TokenLogprob]] = {request: [] for request in stream.requests}
    async for update in stream.updates():
        if update is not None:
            if update.error is not None:
                raise update.error
            texts[update.request].append(update.text)
            logprobs[update.request] += _visible(update)
    return [
        Answer("".join(pieces), request.finish_reason or "stop", logprobs[request]) for request, pieces in texts.items()
    ]


def _visible(update: Update) -> list[TokenLogprob]:
    """The log-probabilities of the tokens that are part of the answer, not of those that end it."""
    return [p for p in update.logprobs if p.token not in update.request.stop_ids]


async def _frames(service: Service, dialect: Dialect, fields: CommonFields, stream: Stream) -> AsyncIterator[bytes]:
    """A stream's frames. An error once it has begun is its last frame, and no [DONE] follows."""
    until_usage: dict[str, Any] = {"usage": None} if fields.include_usage else {}
    index = {request: i for i, request in enumerate(stream.requests)}
    processed = dict.fromkeys(stream.requests, 0)
    opened: set[Request] = set()
    # Log-probabilities wait for the text of their tokens; the characters before them are their offset.
    waiting: dict[Request, list[TokenLogprob]] = {request: [] for request in stream.requests}
    offsets = dict.fromkeys(stream.requests, 0)

    def take_logprobs(request: Request) -> dict[str, Any] | None:
        entries, waiting[request] = waiting[request], []
        offset = offsets[request]
        offsets[request] += sum(len(dialect.spell([e.token])) for e in entries)
        return dialect.logprobs(entries, offset) if entries else None

    try:
        async for update in stream.updates(service.keep_alive):
            if update is None:
                yield KEEP_ALIVE
                continue
            if update.error is not None:
                raise update.error
            request, i = update.request, index[update.request]
            choices: list[dict[str, Any] | None] = []
            if fields.return_progress and update.processed > processed[request]:
                progress = {"processed": update.processed, "total": len(request.prompt), "index": i}
                yield frame(dialect.chunk([], prompt_progress=progress, **until_usage))
            processed[request] = update.processed
            # The opening chunk comes with the first token, so that a client's time to first chunk is the true one.
            if update.tokens and request not in opened:
                opened.add(request)
                choices.append(dialect.first_choice(i))
            waiting[request] += _visible(update)
            if update.text:
                choices.append(dialect.text_choice(i, update.text, take_logprobs(request)))
            if update.finish_reason is not None:
                choices.append(dialect.last_choice(i, update.finish_reason, take_logprobs(request)))
            for choice in choices:
                if choice is not None:
                    yield frame(dialect.chunk([choice], **until_usage))
        if fields.include_usage:
            yield frame(dialect.chunk([], usage=_usage(stream.requests)))
        yield DONE
    except Exception as error:
        yield frame(as_api_error(error).body())


def _usage(requests: Sequence[Request]) -> dict[str, Any]:
    """A prompt with several answers is read, and counted, once."""
    prompts = [r for r in requests if r.follows is None]
    return usage(
        sum(len(r.prompt) for r in prompts),
        sum(len(r.output) for r in requests),
        sum(r.cached_tokens for r in prompts),
    )
