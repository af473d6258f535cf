"""An HTTP request and its answer as metrics, logs and traces see them: no word of either gets in here."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longsight.chat.parser import OutputParser
from longsight.engine import Request
from longsight.server.proxy import read_address, route_path
from longsight.server.usage import UsageRecord

log = logging.getLogger("longsight")
CLIENT_GONE = 499  # what access logs call an answer that nobody waited for


@dataclass(eq=False)
class Access:
    """One request, from its first byte to the last of its answer.

    started: Unix seconds; begun: the same moment by time.monotonic(). retry: the how manieth try of the client's.
    path: without the root path. route: its pattern, "unmatched" for unknown ones; status 0: no answer was begun.
    client: address, as proxies that are trusted tell it. caller: a key's id; key_name: the name it was given.
    requests, parsers: the engine's and the output's, of requests that generate; record: what they have used.
    """

    request_id: str
    method: str
    path: str
    retry: int = 0
    traceparent: str = ""
    tracestate: str = ""
    client: str = ""
    started: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)
    route: str = "unmatched"
    status: int = 0
    caller: str = ""
    key_name: str = ""
    seconds: float = 0.0
    record: UsageRecord | None = None
    requests: Sequence[Request] = ()
    parsers: Sequence[OutputParser] = ()

    def follow(self, requests: Sequence[Request], parsers: Sequence[OutputParser] = ()) -> None:
        """These are what the engine was given."""
        self.requests, self.parsers = requests, parsers

    def anomalies(self) -> Counter[str]:
        """What was wrong with the model's markup, by kind."""
        total: Counter[str] = Counter()
        for parser in self.parsers:
            total.update(parser.anomalies)
        return +total  # less those that never happened


class Sink(Protocol):
    """Hears of requests as they end. Called on the event loop: quick, and silent about what was said."""

    def ended(self, access: Access) -> None: ...


def request_id(scope: Scope) -> str:
    """The id of a request, given when it is first asked for."""
    state = scope.setdefault("state", {})
    return str(state.setdefault("request_id", f"req_{secrets.token_hex(12)}"))


def access_of(scope: Scope) -> Access:
    """A request's access; one that nobody hears of, where no middleware follows it."""
    identity = request_id(scope)
    found = scope["state"].setdefault("access", Access(identity, scope["method"], route_path(scope)))
    assert isinstance(found, Access)
    return found


class Accesses:
    """Those under way, by request id, so that a usage record finds its own."""

    def __init__(self) -> None:
        self._open: dict[str, Access] = {}

    def begin(self, scope: Scope) -> Access:
        headers = Headers(scope=scope)
        access = Access(
            request_id(scope),
            scope["method"],
            route_path(scope),
            _retry(headers.get("x-stainless-retry-count", "")),
            headers.get("traceparent", ""),
            headers.get("tracestate", ""),
            _client(scope),
        )
        scope["state"]["access"] = self._open[access.request_id] = access
        return access

    def get(self, request_id: str) -> Access | None:
        return self._open.get(request_id)

    def end(self, access: Access) -> None:
        self._open.pop(access.request_id, None)


class Observation:
    """ASGI middleware, the outermost: follows each request to its end and tells the sinks.

    routes: the pattern of each path without parameters and of each endpoint. leaving: whether the server is about to
    stop; answers then ask the client to close the connection, so that its next request finds another server.
    """

    def __init__(
        self,
        app: ASGIApp,
        accesses: Accesses,
        sinks: Sequence[Sink],
        routes: Mapping[Any, str],
        leaving: Callable[[], bool],
    ) -> None:
        self.app, self.accesses, self.sinks, self.routes, self.leaving = app, accesses, sinks, routes, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        access = self.accesses.begin(scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                access.status = message["status"]
                if self.leaving():
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            self.accesses.end(access)
            access.seconds = time.monotonic() - access.begun
            access.route = self._route(access, scope)
            caller = scope["state"].get("caller")
            access.caller, access.key_name = getattr(caller, "key_id", "anonymous"), getattr(caller, "name", "")
            for sink in self.sinks:
                try:
                    sink.ended(access)
                except Exception:
                    log.exception("a finished request could not be reported")

    def _route(self, access: Access, scope: Scope) -> str:
        """Never the path itself, unless it is one of ours: a client may not invent names for metrics."""
        # An endpoint may have several paths, of which only the last is in the table by endpoint.
        return self.routes.get(access.path) or self.routes.get(scope.get("endpoint"), "unmatched")


def _client(scope: Scope) -> str:
    address = read_address((scope.get("client") or ("",))[0])
    return "" if address is None else str(address)


def _retry(text: str) -> int:
    return min(int(text), 99) if text.isascii() and text.isdigit() and len(text) < 9 else 0
