"""Checks the API key of every request before anything else of it is read."""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from longsight.server.errors import ApiError, unauthorized
from longsight.server.identity import Caller, require_scope
from longsight.server.proxy import route_path

PUBLIC = {"/health", "/ready", "/", ""}  # "" is the root path itself, which redirects to the page
PUBLIC_FILES = "/web/"  # the page itself; what it asks of the API needs the key that is typed into it
PUBLIC_HEAD = {"/", "/anthropic"}  # clients look whether the server is there
SCOPE_OF = (
    ("/v1/chat", "chat"),
    ("/v1/completions", "chat"),
    ("/v1/responses", "chat"),
    ("/v1/messages", "chat"),
    ("/anthropic/v1/messages", "chat"),
    ("/v1/longsight", "chat"),
    ("/tokenize", "chat"),
    ("/detokenize", "chat"),
    ("/v1/files", "files"),
    ("/v1/usage", "usage"),
    ("/v1/token_plan", "usage"),
    ("/v1/api/openplatform", "usage"),
    ("/metrics", "admin"),
    ("/admin", "admin"),
)


class Authenticator(Protocol):
    async def caller(self, token: str) -> Caller:
        """Who holds this key. Raises ApiError 401, or 503 if the keys cannot be read."""


class RefusedKeyError(ApiError):
    """401 for a key that is known, whose secret is right, and that may not be used any more."""

    def __init__(self, caller: Caller, state: str) -> None:
        message = f"the API key {caller.key_id} is {state}"
        super().__init__(401, message, type="authentication_error", code="invalid_api_key", native=2049)
        self.caller = caller


class StaticKey:
    """One key for everything, kept only as a hash."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def matches(self, token: str) -> bool:
        return hmac.compare_digest(self._digest, hashlib.sha256(token.encode()).digest())

    async def caller(self, token: str) -> Caller:
        if not self.matches(token):
            raise unauthorized("the API key is not known here")
        return Caller("static", "default")


class Authentication:
    """Puts the Caller into the request's state, or refuses: 401 without a valid key, 403 without the path's scope."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self.app, self._authenticator = app, authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" else ""
        if scope["type"] == "http" and not is_public(scope["method"], path):
            token = token_of(Headers(scope=scope))
            if token is None:
                message = "an API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`"
                raise unauthorized(message, missing=True)
            state = scope.setdefault("state", {})
            try:
                state["caller"] = await self._authenticator.caller(token)
            except RefusedKeyError as error:
                state["caller"] = error.caller  # so that the log names it
                raise
            needed = scope_of(path)
            if needed is not None:
                require_scope(state["caller"], needed)
        await self.app(scope, receive, send)


def is_public(method: str, path: str) -> bool:
    return path in PUBLIC or path.startswith(PUBLIC_FILES) or (method == "HEAD" and path in PUBLIC_HEAD)


def scope_of(path: str) -> str | None:
    """The scope that a path needs; None: any key will do."""
    return next((scope for start, scope in SCOPE_OF if path == start or path.startswith(start + "/")), None)


def token_of(headers: Headers) -> str | None:
    """The key that was sent; Bearer wins over x-api-key."""
    kind, _, token = headers.get("authorization", "").strip().partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or None
