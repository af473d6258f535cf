"""The HTTP application: routes, error shape, request ids."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longsight.ops import LongsightError
from longsight.server import web
from longsight.server.access import Accesses, Observation, Sink, request_id
from longsight.server.anthropic import endpoints as anthropic
from longsight.server.auth import Authentication
from longsight.server.body import ClientGoneError
from longsight.server.chat_completions import chat_completions
from longsight.server.completions import completions
from longsight.server.errors import (
    RETRY_AFTER_SECONDS,
    dialect_of,
    on_error,
    on_http_exception,
    respond,
    retry_headers,
)
from longsight.server.files import routes as file_routes
from longsight.server.identity import caller_of, require_scope
from longsight.server.metrics import Metrics
from longsight.server.microscope import Microscope
from longsight.server.openai import model_card
from longsight.server.openapi import openapi
from longsight.server.proxy import LOOPBACK, Proxied, TrustedProxies
from longsight.server.responses.endpoints import routes as responses_routes
from longsight.server.service import Service
from longsight.server.tokenize import routes as tokenize_routes
from longsight.server.usage_api import routes as usage_routes


def create_app(
    service: Service,
    sinks: Sequence[Sink] = (),
    *,
    trusted_proxies: TrustedProxies | None = None,
    root_path: str = "",
) -> Starlette:
    """The ASGI application over one service. Its engine's thread is the caller's to close.

    sinks: hear of each request when it has ended, as the application's own metrics do. trusted_proxies: who may say
    which client a request is from (default: this machine). root_path: the path that a proxy serves this under.
    """
    accesses = Accesses()
    metrics = Metrics(service.driver, service.model_id, accesses)
    service.observers.append(metrics.record)
    routes: dict[object, str] = {}
    app = Starlette(
        routes=[
            *web.routes(),
            Route("/anthropic", web.root),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", expose),
            Route("/openapi.json", openapi),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            *tokenize_routes,
            *file_routes,
            *usage_routes,
            *Microscope().routes(),
            *responses_routes,
            *anthropic.routes,
        ],
        middleware=[
            Middleware(Proxied, trusted=trusted_proxies or TrustedProxies.parse(LOOPBACK), root_path=root_path),
            Middleware(
                Observation,
                accesses=accesses,
                sinks=[metrics, *sinks],
                routes=routes,
                leaving=lambda: service.driver.draining,
            ),
            *middleware(service),
        ],
        exception_handlers={
            HTTPException: on_http_exception,
            ClientGoneError: on_client_gone,
            LongsightError: on_error,
        },
    )
    app.state.service, app.state.metrics = service, metrics
    for route in app.routes:
        if isinstance(route, Route):
            routes[route.endpoint] = route.path
            if "{" not in route.path:
                routes[route.path] = route.path
        elif isinstance(route, Mount):
            routes[route.app] = route.path
    return app


def middleware(service: Service) -> list[Middleware]:
    """Outermost first."""
    layers = [Middleware(Envelope)]
    if service.authenticator is not None:
        layers.append(Middleware(Authentication, authenticator=service.authenticator))
    return layers


async def health(request: Request) -> Response:
    """200 while the engine's thread runs, with what it is doing; 503 when it has ended."""
    service: Service = request.app.state.service
    stats = service.driver.stats()
    body = {
        "status": "ok" if stats.alive else "stopped",
        "model": service.model_id,
        "running": stats.running,
        "waiting": stats.waiting,
        "pages_used": stats.pages_used,
        "pages_total": stats.pages_total,
    }
    return JSONResponse(body, 200 if stats.alive else 503)


async def ready(request: Request) -> Response:
    """200 while new requests would be taken; 503 once the server drains or its engine has ended."""
    stats = request.app.state.service.driver.stats()
    status = "stopped" if not stats.alive else "draining" if stats.draining else "ready"
    if status == "ready":
        return JSONResponse({"status": status})
    return JSONResponse({"status": status}, 503, {"retry-after": str(RETRY_AFTER_SECONDS)})


async def expose(request: Request) -> Response:
    """Prometheus metrics. Where requests are authenticated they need the scope admin."""
    require_scope(caller_of(request), "admin")
    metrics: Metrics = request.app.state.metrics
    body, media_type = await to_thread.run_sync(metrics.expose, request.headers.get("accept", ""))
    return Response(body, headers={"content-type": media_type})


async def models(request: Request) -> Response:
    """OpenAI's list, or Anthropic's to a client that names its version of that protocol."""
    if dialect_of(request.scope) == "anthropic":
        return await anthropic.models(request)
    service: Service = request.app.state.service
    # Under its other names too: some clients show only those that they can place.
    names = (service.model_id, *service.aliases)
    return JSONResponse({"object": "list", "data": [_card(service, name) for name in names]})


async def model(request: Request) -> Response:
    """What is known of one model, in the protocol of the client."""
    if dialect_of(request.scope) == "anthropic":
        return await anthropic.model(request)
    service: Service = request.app.state.service
    name: str = request.path_params["model"]
    service.check_model(name)
    return JSONResponse(_card(service, name))


def _card(service: Service, name: str) -> dict[str, object]:
    longest, limits = service.driver.engine.max_model_len, service.limits
    return {
        **model_card(
            name,
            service.created,
            limits.context(longest),
            min(service.chat_max_tokens, limits.max_output_tokens, longest),
        ),
        "aliases": [other for other in (service.model_id, *service.aliases) if other != name],
        "guaranteed_context": limits.floor(longest),
        "max_output_tokens": min(limits.max_output_tokens, longest),
        **({"built_in": service.built_in} if service.built_in else {}),
    }


async def on_client_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; 499 is what access logs call it."""
    return Response(status_code=499)


class Envelope:
    """Gives every response, streams and errors included, ids to quote in a report, every error advice on trying again,
    and every defect an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identity, trace_id = request_id(scope), trace_of(scope)
        scope["state"]["trace_id"] = trace_id

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = identity
                headers["trace_id"] = trace_id
                if message["status"] >= 400:
                    for name, value in retry_headers(message["status"]).items():
                        headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if started:
                raise
            await respond(error, scope)(scope, receive, send_with_id)


def trace_of(scope: Scope) -> str:
    """The trace that the client's W3C traceparent belongs to; else a new one. 32 hex digits."""
    sent = next((value for name, value in scope["headers"] if name == b"traceparent"), b"")
    match = re.fullmatch(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", sent)
    return match[1].decode() if match and match[1] != b"0" * 32 else secrets.token_hex(16)
