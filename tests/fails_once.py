"""A layer around the server that refuses the first try of a request as the server itself would, if the request asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from longsight.engine import DeadlineExceededError
from longsight.server.errors import (
    ApiError,
    forbidden,
    invalid,
    not_found,
    rate_limited,
    respond,
    too_large,
    unauthorized,
)

HEADER = "x-test-failure"  # names one of these, and after a slash the test that asks
FAILURES: Mapping[str, Exception] = {
    "rate": rate_limited("too fast", 0.05),
    "plan": ApiError(429, "used up", type="rate_limit_error", code="plan_limit", retry=False),
    "unavailable": ApiError(503, "not now", type="server_error", code="unavailable", retry_after=0.05),
    "queue": ApiError(429, "full", type="rate_limit_error", code="queue_full", retry_after=0.05),
    "defect": ZeroDivisionError(),
    "late": DeadlineExceededError("too late"),
    "wrong": invalid("no"),
    "stranger": unauthorized("no"),
    "balance": ApiError(402, "no money", type="insufficient_balance", code="insufficient_balance"),
    "scope": forbidden("no", "missing_scope"),
    "missing": not_found("no"),
    "large": too_large(1),
}
RETRIED = ("rate", "unavailable", "queue", "defect", "late")
FINAL = ("plan", "wrong", "stranger", "balance", "scope", "missing", "large")


@dataclass
class FailsOnce:
    """tries: how many requests have asked for each failure; retries: what SDKs say of the try, beside it."""

    app: ASGIApp | None = None
    tries: Counter[str] = field(default_factory=Counter)
    retries: dict[str, list[str]] = field(default_factory=dict)

    def around(self, app: ASGIApp) -> FailsOnce:
        self.app = app
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app is not None
        headers = {name.decode(): value.decode() for name, value in scope.get("headers", ())}
        asked = headers.get(HEADER)
        if asked is None:
            await self.app(scope, receive, send)
            return
        self.tries[asked] += 1
        self.retries.setdefault(asked, []).append(headers.get("x-stainless-retry-count", ""))
        if self.tries[asked] > 1:
            await self.app(scope, receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        await respond(FAILURES[asked.split("/")[0]], scope)(scope, receive, send)
