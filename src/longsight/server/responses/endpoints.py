"""POST /v1/responses, and what is there for responses that are kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from anyio import to_thread
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from longsight.server.body import read_text, unless_gone
from longsight.server.errors import as_api_error, invalid, not_found, show
from longsight.server.exchange import Exchange
from longsight.server.identity import caller_of
from longsight.server.responses.assembly import Assembly
from longsight.server.responses.request import Prepared, prepare, read
from longsight.server.responses.store import Stored
from longsight.server.service import Service
from longsight.server.sse import KEEP_ALIVE, EventStream, event_frame

MAX_PAGE = 100  # of input items


async def create(http: HttpRequest) -> Response:
    """An answer to the items of a conversation, whole or as events."""
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)
    # Parsing and tokenizing a megabyte takes a while: not on the loop that answers everyone else.
    prepared, choices = await to_thread.run_sync(prepare, service, body, caller_of(http))
    exchange = Exchange(http, "responses", prepared.turn.service_tier, bool(prepared.fields.stream))
    exchange.submit(choices)
    fields = prepared.fields
    signer = service.signer if fields.encrypted else None
    assembly = Assembly(prepared.base(), prepared.toolbox, fields.summaries, signer)
    if fields.stream:
        headers = {**exchange.headers(), **prepared.headers()}
        return EventStream(_frames(exchange, prepared, assembly), exchange.close, headers)
    try:
        response = await unless_gone(http, _whole(exchange, prepared, assembly))
    finally:
        await exchange.close()
    return JSONResponse(response, headers={**exchange.headers(), **prepared.headers()})


async def _events(
    exchange: Exchange, prepared: Prepared, assembly: Assembly, heartbeat: float | None
) -> AsyncIterator[dict[str, Any] | None]:
    """The events of an answer; None after `heartbeat` seconds of silence."""
    for event in assembly.begin():
        yield event
    async for piece in exchange.pieces(heartbeat):
        if piece is None:
            yield None
            continue
        for event in assembly.add(piece):
            yield event
    for event in assembly.end():
        yield event
    last = assembly.final(exchange)
    if prepared.stored:
        await to_thread.run_sync(_keep, exchange, prepared, last["response"])
    yield last


async def _whole(exchange: Exchange, prepared: Prepared, assembly: Assembly) -> Any:
    response: Any = None
    async for event in _events(exchange, prepared, assembly, None):
        response = event["response"] if event is not None and "response" in event else response
    return response


async def _frames(exchange: Exchange, prepared: Prepared, assembly: Assembly) -> AsyncIterator[bytes]:
    """A stream's frames. What goes wrong once it has begun is its last event."""
    try:
        async for event in _events(exchange, prepared, assembly, exchange.service.keep_alive):
            yield KEEP_ALIVE if event is None else event_frame(event)
    except Exception as error:
        yield event_frame(assembly.failure(as_api_error(error), exchange))


def _keep(exchange: Exchange, prepared: Prepared, response: dict[str, Any]) -> None:
    entry = Stored(
        prepared.id,
        exchange.caller.organisation,
        prepared.fields.previous_response_id,
        prepared.input,
        json.dumps(response, ensure_ascii=False, separators=(",", ":")).encode(),
        tuple(item["id"] for item in response["output"]),
    )
    exchange.service.responses.put(entry)


async def retrieve(http: HttpRequest) -> Response:
    """A stored response, as it was given."""
    entry = _stored(http)
    if http.query_params.get("stream", "false") != "false":
        raise invalid("stream is set, but a stored response is given whole; leave it out", "stream")
    return Response(entry.response, media_type="application/json")


async def delete(http: HttpRequest) -> Response:
    """Forget a stored response."""
    service: Service = http.app.state.service
    id = http.path_params["id"]
    service.responses.delete(caller_of(http).organisation, id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


async def cancel(http: HttpRequest) -> Response:
    """Refused: no response outlives its request."""
    entry = _stored(http)
    raise invalid(f"the response {entry.id!r} is not in the background; it ends when its request does", "id")


async def compact(http: HttpRequest) -> Response:
    """Refused: a long conversation is read as it is."""
    raise not_found("this server does not compact conversations; it reads them whole, from its cache", "unavailable")


async def input_items(http: HttpRequest) -> Response:
    """A page of a stored response's own input, the last item first unless order is asc."""
    items = _stored(http).input_items()
    query = http.query_params
    limit, order, after = query.get("limit", "20"), query.get("order", "desc"), query.get("after")
    if not limit.isdecimal() or not 1 <= int(limit) <= MAX_PAGE:
        raise invalid(f"limit is {show(limit)}; it must be an integer from 1 to {MAX_PAGE}", "limit")
    if order not in ("asc", "desc"):
        raise invalid(f"order is {show(order)}; it must be asc or desc", "order")
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise invalid(f"after is {show(after)}; this response has no such item", "after")
    begin = 0 if after is None else ids.index(after) + 1
    page = items[begin : begin + int(limit)]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": begin + len(page) < len(items),
        }
    )


async def input_tokens(http: HttpRequest) -> Response:
    """How long a request's prompt is, without answering it."""
    service: Service = http.app.state.service
    body = await read_text(http, service.body_limit)

    def count() -> int:
        return service.prompt_tokens(read(service, body, caller_of(http)).turn)

    tokens = await to_thread.run_sync(count)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


def _stored(http: HttpRequest) -> Stored:
    service: Service = http.app.state.service
    return service.responses.get(caller_of(http).organisation, http.path_params["id"])


routes = [
    Route("/v1/responses", create, methods=["POST"]),
    Route("/v1/responses/input_tokens", input_tokens, methods=["POST"]),
    Route("/v1/responses/compact", compact, methods=["POST"]),
    Route("/v1/responses/{id}", retrieve, methods=["GET"]),
    Route("/v1/responses/{id}", delete, methods=["DELETE"]),
    Route("/v1/responses/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/responses/{id}/input_items", input_items, methods=["GET"]),
]
