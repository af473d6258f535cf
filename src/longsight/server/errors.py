"""Errors as OpenAI clients expect them: {"error": {"message", "type", "param", "code"}} with the right status."""

from __future__ import annotations

import json
import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from longsight.chat.errors import ChatError
from longsight.engine import ContextLengthError, EngineStoppedError, InvalidRequestError, QueueFullError
from longsight.ops import LongsightError

log = logging.getLogger("longsight")
RETRY_AFTER_SECONDS = 5


class ApiError(LongsightError):
    """A refusal with everything a client needs to act on it."""

    def __init__(
        self, status: int, message: str, *, type: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.param = status, type, code, param

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        retry = self.status in (429, 500, 503)
        headers = {"x-should-retry": "true" if retry else "false"}
        if self.status == 503:
            headers["retry-after"] = str(RETRY_AFTER_SECONDS)
        return JSONResponse(self.body(), self.status, headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request itself is wrong; sending it again cannot help."""
    return ApiError(400, message, type="invalid_request_error", code=code, param=param)


def show(value: Any) -> str:
    """A value as JSON, short enough for one line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def too_large(limit: int) -> ApiError:
    message = f"the request body is larger than the limit of {limit} bytes"
    return ApiError(413, message, type="invalid_request_error", code="request_too_large")


def as_api_error(error: Exception) -> ApiError:
    """Any exception as the answer to the client; what nobody foresaw becomes a 500 and a logged traceback."""
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            return invalid(str(error), error.param, "context_length_exceeded")
        case ChatError():
            return invalid(str(error), error.path)
        case InvalidRequestError():
            # What the engine calls a grammar came as the protocol's response_format.
            return invalid(str(error), "response_format" if error.param == "grammar" else error.param)
        case QueueFullError():
            return ApiError(503, str(error), type="server_error", code="queue_full")
        case EngineStoppedError():
            return ApiError(503, str(error), type="server_error", code="unavailable")
        case LongsightError():
            return ApiError(500, str(error), type="server_error", code="internal_error")
    log.error("unexpected error in the server", exc_info=error)
    return ApiError(500, f"internal error: {type(error).__name__}", type="server_error", code="internal_error")


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for everything an endpoint raises."""
    return as_api_error(error).response()


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Routing's own refusals (404, 405) in the same shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    message = f"{request.method} {request.url.path}: " + {404: "no such route", 405: "method not allowed"}.get(
        status, str(getattr(error, "detail", error))
    )
    response = ApiError(status, message, type="invalid_request_error", code="unknown_url").response()
    response.headers.update(headers)
    return response
