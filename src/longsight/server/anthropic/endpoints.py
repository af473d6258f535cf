"""POST /v1/messages, the counting of its tokens, and the models, also under /anthropic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from anyio import to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from longsight.chat.errors import SchemaError
from longsight.chat.request import ChatRequest
from longsight.engine import ContextLengthError, InvalidRequestError
from longsight.server.answers import Choice
from longsight.server.anthropic.fields import MessagesFields
from longsight.server.anthropic.reply import Reply, usage
from longsight.server.body import read_text, unless_gone
from longsight.server.errors import ApiError, as_api_error, invalid
from longsight.server.exchange import Exchange
from longsight.server.schema import checked
from longsight.server.service import Service
from longsight.server.sse import EventStream, event_frame

PING: Mapping[str, Any] = {"type": "ping"}


async def messages(http: HttpRequest) -> Response:
    """The assistant's next message, whole or as a stream of events."""
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    # Parsing and tokenizing a megabyte takes a while: not on the loop that answers everyone else.
    fields, turn, choices = await to_thread.run_sync(_prepare, service, body)
    exchange = Exchange(http, "anthropic", turn.service_tier, bool(fields.stream))
    exchange.submit(choices)
    # By the name that was asked for: Claude Code keeps no thinking of a model by any other.
    reply = Reply(turn.model, service.signer)
    if fields.stream:
        return EventStream(_frames(exchange, reply), exchange.close, exchange.headers())
    try:
        await unless_gone(http, _collect(exchange, reply))
    finally:
        await exchange.close()
    whole = reply.whole(usage(exchange.usage, turn.service_tier, exchange))
    return JSONResponse(whole, headers=dict(exchange.headers()))


def _prepare(service: Service, body: str) -> tuple[MessagesFields, ChatRequest, list[Choice]]:
    fields = checked(MessagesFields, body)
    turn = fields.turn(service.defaults)
    try:
        return fields, turn, service.choices(turn)
    except ContextLengthError as error:
        raise too_long(error) from error
    except SchemaError as error:
        raise invalid(str(error), fields.format_path if error.tool is None else "tools") from error
    except InvalidRequestError as error:
        raise invalid(str(error), fields.format_path if error.param == "grammar" else error.param) from error


def too_long(error: ContextLengthError) -> ApiError:
    """In the words by which agents know that they must ask for a shorter answer, or shorten the conversation."""
    prompt, answer, limit = error.prompt_tokens, error.max_tokens, error.max_model_len
    if prompt >= limit:
        message = f"prompt is too long: {prompt} tokens > {limit} maximum"
    elif prompt + answer > limit:
        message = f"input length and `max_tokens` exceed context limit: {prompt} + {answer} > {limit}"
    else:
        message = str(error)
    return invalid(message, None, "context_length_exceeded")


async def _collect(exchange: Exchange, reply: Reply) -> None:
    async for piece in exchange.pieces():
        if piece is not None:
            for _ in reply.events(piece):
                pass


async def _frames(exchange: Exchange, reply: Reply) -> AsyncIterator[bytes]:
    """A stream's events. An error once it has begun is its last one.

    message_start waits for the first news, or the first heartbeat: what comes from the cache is known by then.
    """
    begun = False
    try:
        async for piece in exchange.pieces(exchange.service.keep_alive):
            if not begun:
                begun = True
                yield event_frame(reply.start(usage(exchange.usage, exchange.service_tier)))
                yield event_frame(PING)
            elif piece is None:
                yield event_frame(PING)
            if piece is not None:
                for event in reply.events(piece):
                    yield event_frame(event)
        for event in reply.end(usage(exchange.usage, exchange.service_tier, exchange)):
            yield event_frame(event)
    except Exception as error:
        yield event_frame(as_api_error(error).body("anthropic", exchange.request_id))


async def count_tokens(http: HttpRequest) -> Response:
    """What the real request would count as input, cached or not."""
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    return JSONResponse({"input_tokens": await to_thread.run_sync(_count, service, body)})


def _count(service: Service, body: str) -> int:
    turn = checked(MessagesFields, body).turn(service.defaults)
    service.check_model(turn.model)
    return service.prompt_tokens(turn)


async def models(http: HttpRequest) -> Response:
    """The model by all its names."""
    return JSONResponse(model_list(http.app.state.service))


async def model(http: HttpRequest) -> Response:
    """What is known of one model."""
    service: Service = http.app.state.service
    name: str = http.path_params["model"]
    service.check_model(name)
    return JSONResponse(_card(service, name))


def model_list(service: Service) -> dict[str, Any]:
    """Other names of the model too: some clients show only those that they can place."""
    names = [service.model_id, *service.aliases]
    return {
        "data": [_card(service, name) for name in names],
        "has_more": False,
        "first_id": names[0],
        "last_id": names[-1],
    }


def _card(service: Service, name: str) -> dict[str, Any]:
    longest, limits = service.driver.engine.max_model_len, service.limits
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": limits.context(longest),
        "max_tokens": min(limits.max_output_tokens, longest),
    }


routes = [
    Route("/anthropic/v1/models", models),
    Route("/anthropic/v1/models/{model:path}", model),
    *(
        Route(prefix + path, endpoint, methods=["POST"])
        for prefix in ("", "/anthropic")
        for path, endpoint in (("/v1/messages", messages), ("/v1/messages/count_tokens", count_tokens))
    ),
]
