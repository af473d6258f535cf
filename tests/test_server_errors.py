"""Errors in each protocol's own shape, as the official clients understand them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from live_server import LiveServer, live_server, wait_for
from longsight.engine import (
    ContextLengthError,
    DeadlineExceededError,
    EngineStoppedError,
    InvalidRequestError,
    QueueFullError,
)
from longsight.ops import LongsightError
from longsight.server.app import Envelope
from longsight.server.auth import StaticKey
from longsight.server.errors import (
    ApiError,
    as_api_error,
    dialect_of,
    forbidden,
    invalid,
    not_found,
    on_error,
    on_http_exception,
    rate_limited,
    too_large,
    unauthorized,
    unavailable,
)
from longsight.server.listen import listen

# name: the error; status and code in OpenAI's shape; status and type in Anthropic's; code in the native one; try again?
TABLE: dict[str, tuple[Exception, int, str | None, int, str, int, bool]] = {
    "value": (invalid("no", "a.0"), 400, "invalid_value", 400, "invalid_request_error", 2013, False),
    "engine": (InvalidRequestError("no", "top_p"), 400, "invalid_value", 400, "invalid_request_error", 2013, False),
    "context": (
        ContextLengthError(9, 9, 10, 16, 4),
        400,
        "context_length_exceeded",
        400,
        "invalid_request_error",
        2013,
        False,
    ),
    "no key": (
        unauthorized("no", missing=True),
        401,
        "invalid_api_key",
        401,
        "authentication_error",
        1004,
        False,
    ),
    "key": (unauthorized("no"), 401, "invalid_api_key", 401, "authentication_error", 2049, False),
    "balance": (
        ApiError(402, "no", type="insufficient_balance", code="insufficient_balance"),
        402,
        "insufficient_balance",
        402,
        "permission_error",
        1008,
        False,
    ),
    "scope": (forbidden("no", "missing_scope"), 403, "missing_scope", 403, "permission_error", 2061, False),
    "model": (not_found("no", "model_not_found"), 404, "model_not_found", 404, "not_found_error", 2013, False),
    "body": (too_large(5), 413, "request_too_large", 413, "request_too_large", 2013, False),
    "rate": (rate_limited("no", 7.2), 429, "rate_limit_exceeded", 429, "rate_limit_error", 1002, True),
    "tokens": (
        rate_limited("no", 7.2, native=1039),
        429,
        "rate_limit_exceeded",
        429,
        "rate_limit_error",
        1039,
        True,
    ),
    "queue": (QueueFullError(3, 3), 429, "queue_full", 529, "overloaded_error", 2045, True),
    "plan": (
        ApiError(429, "no", type="rate_limit_error", code="plan_limit", retry=False),
        429,
        "plan_limit",
        429,
        "rate_limit_error",
        2056,
        False,
    ),
    "defect": (ZeroDivisionError("secret"), 500, "internal_error", 500, "api_error", 1000, True),
    "ours": (LongsightError("no"), 500, "internal_error", 500, "api_error", 1000, True),
    "stopped": (EngineStoppedError("no"), 503, "unavailable", 503, "overloaded_error", 1033, True),
    "keys": (unavailable("no"), 503, "unavailable", 503, "overloaded_error", 1033, True),
    "late": (DeadlineExceededError("no"), 504, "timeout", 504, "api_error", 1001, True),
}
OPENAI_CLASSES: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
    504: openai.InternalServerError,
}
ANTHROPIC_CLASSES: dict[int, type[anthropic.APIStatusError]] = {
    400: anthropic.BadRequestError,
    401: anthropic.AuthenticationError,
    403: anthropic.PermissionDeniedError,
    402: anthropic.PaymentRequiredError,
    404: anthropic.NotFoundError,
    413: anthropic.ContentTooLargeError,
    429: anthropic.RateLimitError,
    500: anthropic.InternalServerError,
    503: anthropic.ServiceUnavailableError,
    504: anthropic.GatewayTimeoutError,
    529: anthropic.OverloadedError,
}


async def fail(request: Request) -> Response:
    raise TABLE[json.loads(await request.body() or b"{}").get("model") or request.query_params["error"]][0]


async def stream(request: Request) -> Response:
    async def frames() -> Any:
        yield b"data: 1\n\n"

    return StreamingResponse(frames(), media_type="text/event-stream")


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", ws="none"))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="module")
def failing() -> Iterator[str]:
    """A server with this one's envelope and handlers, whose every path fails as it is asked to."""
    app = Starlette(
        routes=[
            Route("/stream", stream),
            Route("/v1/files/upload", fail, methods=["POST"]),
            Route("/{path:path}", fail, methods=["GET", "POST"]),
        ],
        middleware=[Middleware(Envelope)],
        exception_handlers={HTTPException: on_http_exception, LongsightError: on_error},
    )
    with serving(app) as url:
        yield url


def check_headers(headers: Any, status: int, retry: bool) -> None:
    assert headers["x-request-id"] == headers["request-id"]
    assert headers["x-request-id"].startswith("req_")
    assert len(headers["trace_id"]) == 32
    assert headers["x-should-retry"] == ("true" if retry else "false")
    assert ("retry-after" in headers) == (status in (429, 503, 529))
    if "retry-after" in headers:
        assert 1 <= int(headers["retry-after"]) <= 60
        assert 0 < int(headers["retry-after-ms"]) <= 60_000
    assert ("www-authenticate" in headers) == (status == 401)


@pytest.mark.parametrize("name", TABLE)
def test_openai(failing: str, name: str) -> None:
    _, status, code, _, _, _, retry = TABLE[name]
    expected = OPENAI_CLASSES.get(status, openai.APIStatusError)
    client = openai.OpenAI(base_url=f"{failing}/v1", api_key="x", max_retries=0)
    with client, pytest.raises(expected) as caught:
        client.chat.completions.create(model=name, messages=[])
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    assert set(caught.value.response.json()) == {"error"}
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in caught.value.response.text
    check_headers(caught.value.response.headers, status, retry)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("base", ["", "/anthropic"])
def test_anthropic(failing: str, base: str, name: str) -> None:
    _, openai_status, _, status, kind, _, retry = TABLE[name]
    expected = ANTHROPIC_CLASSES.get(status, anthropic.APIStatusError)
    client = anthropic.Anthropic(base_url=failing + base, api_key="x", max_retries=0)
    with client, pytest.raises(expected) as caught:
        client.messages.create(model=name, max_tokens=5, messages=[])
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    body = caught.value.response.json()
    assert set(body) == {"type", "request_id", "error"}
    assert set(body["error"]) == {"type", "message"}
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.request_id
    check_headers(caught.value.response.headers, openai_status, retry)


@pytest.mark.parametrize("name", TABLE)
def test_native(failing: str, name: str) -> None:
    _, status, _, _, _, native, retry = TABLE[name]
    response = httpx.post(f"{failing}/v1/files/upload", params={"error": name})
    assert response.status_code == 200
    assert set(response.json()) == {"base_resp"}
    assert response.json()["base_resp"]["status_code"] == native
    check_headers(response.headers, status, retry)


def test_the_place_is_named_where_the_shape_has_no_field_for_it(failing: str) -> None:
    body = httpx.post(f"{failing}/v1/messages", params={"error": "value"}).json()
    assert body["error"]["message"] == "a.0: no"
    body = httpx.post(f"{failing}/v1/files/upload", params={"error": "value"}).json()
    assert body["base_resp"]["status_msg"] == "a.0: no"


def test_routing_errors_have_the_shape_too(failing: str) -> None:
    response = httpx.delete(f"{failing}/anthropic/v1/messages")
    assert response.status_code == 405
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.headers["x-should-retry"] == "false"
    assert "POST" in response.headers["allow"]


def test_streams_have_the_ids(failing: str) -> None:
    headers = httpx.get(f"{failing}/stream").headers
    assert headers["x-request-id"] == headers["request-id"]
    assert len(headers["trace_id"]) == 32
    assert "x-should-retry" not in headers


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", False),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", False),
        ("x" * 5000, False),
    ],
)
def test_the_trace_is_the_clients_if_it_has_one(failing: str, sent: str, kept: bool) -> None:
    got = httpx.get(f"{failing}/stream", headers={"traceparent": sent}).headers["trace_id"]
    assert (got == "4bf92f3577b34da6a3ce929d0e0e4736") == kept
    assert len(got) == 32


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/chat/completions", {}, "openai"),
        ("/anthropic", {}, "anthropic"),
        ("/anthropic/v1/messages", {}, "anthropic"),
        ("/anthropics", {}, "openai"),
        ("/v1/messages", {}, "anthropic"),
        ("/v1/messages/count_tokens", {}, "anthropic"),
        ("/v1/messagesx", {}, "openai"),
        ("/v1/models", {}, "openai"),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/models/tiny", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/chat/completions", {"anthropic-version": "2023-06-01"}, "openai"),
        ("/v1/files/upload", {}, "native"),
        ("/v1/files/retrieve_content", {}, "native"),
        ("/v1/files", {}, "openai"),
        ("/v1/files/123/content", {}, "openai"),
    ],
)
def test_dialects(path: str, headers: dict[str, str], dialect: str) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert dialect_of({"type": "http", "path": path, "headers": raw}) == dialect


@pytest.mark.parametrize(
    ("wait", "seconds", "milliseconds"),
    [(0, "1", "1"), (0.0301, "1", "31"), (1.0, "1", "1000"), (1.001, "2", "1001"), (9999, "60", "60000")],
)
def test_waits_are_within_what_clients_heed(wait: float, seconds: str, milliseconds: str) -> None:
    headers = rate_limited("no", wait).headers()
    assert (headers["retry-after"], headers["retry-after-ms"]) == (seconds, milliseconds)


def test_bodies_of_events_that_end_a_stream() -> None:
    error = as_api_error(QueueFullError(3, 3))
    assert error.body()["error"]["code"] == "queue_full"
    assert error.body("anthropic", "req_1") == {
        "type": "error",
        "request_id": "req_1",
        "error": {"type": "overloaded_error", "message": str(error)},
    }


def test_the_real_server_by_status() -> None:
    with live_server(authenticator=StaticKey("right"), body_limit=1000) as server:
        ask: dict[str, Any] = {"model": "tiny", "prompt": "abcabc", "max_tokens": 2}

        def refused(status: int, key: str = "right", **fields: Any) -> None:
            options: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": key, "max_retries": 0}
            expected = OPENAI_CLASSES.get(status, openai.APIStatusError)
            with openai.OpenAI(**options) as client, pytest.raises(expected) as caught:
                client.completions.create(**{**ask, **fields})
            assert caught.value.status_code == status

        refused(400, temperature=9)
        refused(401, key="wrong")
        refused(404, model="no/such")
        refused(413, prompt="x" * 2000)
        server.model.before = explode
        refused(500)
        server.model.before = None
        stop(server)
        refused(503)


def explode(tokens: list[int]) -> None:
    raise RuntimeError("a defect in a kernel")


def stop(server: LiveServer) -> None:
    def broken(stats: object) -> None:
        raise RuntimeError("a callback that raises")

    server.engine.on_step = broken
    httpx.post(
        f"{server.url}/v1/completions",
        json={"model": "tiny", "prompt": "x"},
        headers={"x-api-key": "right"},
        timeout=30,
    )
