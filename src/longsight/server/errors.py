"""Errors in the shape that the caller's protocol expects, with the right status and advice on trying again.

OpenAI: {"error": {"message", "type", "param", "code"}}. Anthropic: {"type": "error", "request_id", "error": {"type",
"message"}}. Native (MiniMax's files API): {"base_resp": {"status_code", "status_msg"}} with HTTP 200.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from longsight.chat.errors import ChatError, SchemaError
from longsight.chat.errors import show as show  # what the server's own messages use too
from longsight.engine import (
    ContextLengthError,
    DeadlineExceededError,
    EngineStoppedError,
    InvalidRequestError,
    QueueFullError,
)
from longsight.ops import LongsightError
from longsight.server.error_page import error_page, wants_page
from longsight.server.proxy import route_path

log = logging.getLogger("longsight")

ErrorDialect = Literal["openai", "anthropic", "native"]
NATIVE_PATHS = {f"/v1/files/{call}" for call in ("upload", "list", "retrieve", "retrieve_content", "delete")}

RETRY_AFTER_SECONDS = 5  # where nothing better is known
MAX_RETRY_AFTER = 60  # clients ignore, or never retry after, longer waits
RETRIED = frozenset({429, 500, 503, 504, 529})
WAITED_FOR = frozenset({429, 503, 529})

ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "permission_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
NATIVE_STATUS = {401: 1004, 402: 1008, 403: 2061, 429: 1002, 503: 1033, 504: 1001, 529: 1033}
NATIVE_CODES = {"queue_full": 2045, "plan_limit": 2056}


class ApiError(LongsightError):
    """A refusal with everything a client needs to act on it.

    type, code, param: as OpenAI's protocol has them. retry_after: seconds until another try may succeed. retry: whether
    one may at all, if not as the status says. native: the native status code, if not as status and code say.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        retry: bool | None = None,
        native: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.param = status, type, code, param
        self.retry_after, self.retry, self.extra_headers = retry_after, retry, dict(headers or {})
        self.native = native or NATIVE_CODES.get(code or "") or _native_code(status)

    def status_for(self, dialect: ErrorDialect) -> int:
        """The HTTP status. Anthropic's clients know a full queue as 529; the native API puts errors in the body."""
        if dialect == "native":
            return 200
        return 529 if dialect == "anthropic" and self.code == "queue_full" else self.status

    def body(self, dialect: ErrorDialect = "openai", request_id: str | None = None) -> dict[str, Any]:
        """The whole answer, or the data of the event that ends a stream."""
        if dialect == "openai":
            return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}
        # These two have no field for the place, so the message names it.
        message = str(self) if self.param is None or self.param in str(self) else f"{self.param}: {self}"
        if dialect == "native":
            return {"base_resp": {"status_code": self.native, "status_msg": message}}
        error = {"type": _anthropic_type(self.status_for(dialect)), "message": message}
        return {"type": "error", "request_id": request_id, "error": error}

    def headers(self) -> dict[str, str]:
        challenge = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return {**challenge, **self.extra_headers, **retry_headers(self.status, self.retry_after, self.retry)}

    def response(self, dialect: ErrorDialect = "openai", request_id: str | None = None) -> JSONResponse:
        return JSONResponse(self.body(dialect, request_id), self.status_for(dialect), self.headers())


def retry_headers(status: int, wait: float | None = None, retry: bool | None = None) -> dict[str, str]:
    """Advice on trying again: x-should-retry on every error, the wait (seconds) where waiting is what helps."""
    headers = {"x-should-retry": "true" if (status in RETRIED if retry is None else retry) else "false"}
    if status in WAITED_FOR:
        wait = min(RETRY_AFTER_SECONDS if wait is None else max(wait, 0.001), MAX_RETRY_AFTER)
        headers["retry-after"] = str(math.ceil(wait))
        headers["retry-after-ms"] = str(math.ceil(wait * 1000))
    return headers


def dialect_of(scope: Scope) -> ErrorDialect:
    """The protocol that a request speaks, by its path; /v1/models is shared and told apart by a header."""
    path = route_path(scope)
    if any(path == p or path.startswith(p + "/") for p in ("/anthropic", "/v1/messages")):
        return "anthropic"
    if path in NATIVE_PATHS:
        return "native"
    shared = path == "/v1/models" or path.startswith("/v1/models/")
    return "anthropic" if shared and any(name == b"anthropic-version" for name, _ in scope["headers"]) else "openai"


def respond(error: Exception, scope: Scope) -> Response:
    """Any exception as the answer to the request of this scope: in its protocol's JSON, or as a page for a browser."""
    found, dialect = as_api_error(error), dialect_of(scope)
    if wants_page(scope):
        response = error_page(found.status, str(found), scope)
        response.headers.update(found.headers())
        return response
    return found.response(dialect, scope.get("state", {}).get("request_id"))


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request itself is wrong; sending it again cannot help."""
    return ApiError(400, message, type="invalid_request_error", code=code, param=param)


def unauthorized(message: str, *, missing: bool = False) -> ApiError:
    """401: no API key, or none that is known."""
    native = 1004 if missing else 2049
    return ApiError(401, message, type="authentication_error", code="invalid_api_key", native=native)


def forbidden(message: str, code: str, param: str | None = None) -> ApiError:
    """403: the key is known, and is not for this."""
    return ApiError(403, message, type="permission_error", code=code, param=param)


def not_found(message: str, code: str = "not_found", param: str | None = None) -> ApiError:
    return ApiError(404, message, type="invalid_request_error", code=code, param=param)


def too_large(limit: int) -> ApiError:
    message = (
        f"the request body is larger than the limit of {limit} bytes; send less, or start the server with a larger "
        "--max-body (the limit body_bytes)"
    )
    return ApiError(413, message, type="invalid_request_error", code="request_too_large")


def rate_limited(
    message: str, wait: float | None, *, native: int = 1002, headers: Mapping[str, str] | None = None
) -> ApiError:
    """429 that passes by itself. wait: seconds, None if nobody knows."""
    return ApiError(
        429,
        message,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        retry_after=wait,
        native=native,
        headers=headers,
    )


def unavailable(message: str) -> ApiError:
    return ApiError(503, message, type="server_error", code="unavailable")


def as_api_error(error: Exception) -> ApiError:
    """Any exception as the answer to the client; what nobody foresaw becomes a 500 and a logged traceback."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return invalid(str(error), error.param, "context_length_exceeded")
        case ChatError():
            return invalid(str(error), error.path, error.code)
        case SchemaError():
            return invalid(str(error), "response_format" if error.tool is None else "tools")
        case InvalidRequestError():
            # What the engine calls a grammar came as the protocol's response_format.
            return invalid(str(error), "response_format" if error.param == "grammar" else error.param)
        case QueueFullError():
            return ApiError(429, str(error), type="rate_limit_error", code="queue_full")
        case EngineStoppedError():
            return unavailable(str(error))
        case DeadlineExceededError():
            return ApiError(504, str(error), type="server_error", code="timeout")
        case LongsightError():
            return ApiError(500, str(error), type="server_error", code="internal_error")
    log.error("unexpected error in the server", exc_info=error)
    return ApiError(500, f"internal error: {type(error).__name__}", type="server_error", code="internal_error")


async def on_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for everything an endpoint raises."""
    return respond(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Routing's own refusals (404, 405) in the same shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    message = f"{request.method} {request.url.path}: " + {404: "no such route", 405: "method not allowed"}.get(
        status, str(getattr(error, "detail", error))
    )
    response = respond(ApiError(status, message, type="invalid_request_error", code="unknown_url"), request.scope)
    response.headers.update(headers)
    return response


def _anthropic_type(status: int) -> str:
    return ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def _native_code(status: int) -> int:
    return NATIVE_STATUS.get(status) or (1000 if status >= 500 else 2013)
