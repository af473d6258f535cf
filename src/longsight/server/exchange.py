"""One generating HTTP request from admission to the record of what it used, whatever the protocol."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from anyio import to_thread
from starlette.requests import Request as HttpRequest

from longsight.engine import Stream
from longsight.server.access import Access, access_of
from longsight.server.answers import Choice, Piece, pieces
from longsight.server.deadline import deadline_of
from longsight.server.gate import Ticket
from longsight.server.identity import ANONYMOUS, Caller, caller_of, require_model
from longsight.server.service import Service
from longsight.server.usage import Cost, Status, UsageRecord

log = logging.getLogger("longsight")


@dataclass(frozen=True)
class Usage:
    """Tokens of a whole HTTP request. prompt includes cached, completion includes reasoning."""

    prompt: int
    cached: int
    completion: int
    reasoning: int


@dataclass
class Exchange:
    """dialect: openai, completions, responses or anthropic. stream: whether the client is told as it goes along.

    `submit` first, then `pieces`, and `close` in the end.
    """

    http: HttpRequest
    dialect: str
    service_tier: str = "standard"
    stream: bool = False
    choices: Sequence[Choice] = ()
    cost: Cost | None = None
    _first: float | None = None
    _stream: Stream | None = None
    _ticket: Ticket | None = None
    _status: Status = "cancelled"
    _closing: asyncio.Task[None] | None = None

    @property
    def access(self) -> Access:
        """The HTTP request around it, whose time begins before the body is read."""
        return access_of(self.http.scope)

    @property
    def service(self) -> Service:
        service: Service = self.http.app.state.service
        return service

    @property
    def caller(self) -> Caller:
        return caller_of(self.http)

    @property
    def request_id(self) -> str:
        return self.access.request_id

    @property
    def usage(self) -> Usage:
        """As it stands. A prompt with several answers is read, and counted, once."""
        prompts = [c.request for c in self.choices if c.request.follows is None]
        return Usage(
            sum(len(r.prompt) for r in prompts),
            sum(r.cached_tokens for r in prompts),
            sum(c.tokens for c in self.choices),
            sum(c.reasoning_tokens for c in self.choices),
        )

    def submit(self, choices: Sequence[Choice]) -> None:
        """Give the answers to the engine. Raises ApiError 403 for a key that is not for the model, 429 at the gate, or
        what the engine says."""
        self.choices = choices
        require_model(self.caller, self.service.model_id, *self.service.aliases)
        if self.service.gate is not None:
            most = self.usage.prompt + sum(c.request.max_tokens for c in choices)
            longest = max(len(c.request.prompt) + c.request.max_tokens for c in choices)
            self._ticket = self.service.gate.admit(self.caller, most, longest)
        deadline = deadline_of(self.http, stream=self.stream)
        for choice in choices:
            choice.request.deadline = deadline
            # How fast an answer comes tells whether its prompt has been read before: that is for the same organisation.
            choice.request.cache_salt = b"" if self.caller is ANONYMOUS else self.caller.organisation.encode()
        try:
            self._stream = self.service.driver.submit([c.request for c in choices])
            self.access.follow([c.request for c in choices], [c.parser for c in choices if c.parser])
        except BaseException:
            if self._ticket is not None:
                self._ticket.close(0)
            raise

    async def pieces(self, heartbeat: float | None = None) -> AsyncIterator[Piece | None]:
        """News of the answers (answers.pieces). The record is written before the last piece is handed on."""
        assert self._stream is not None, "submit comes first"
        try:
            left = len(self.choices)
            async for piece in pieces(self._stream, self.choices, heartbeat=heartbeat):
                if piece is not None:
                    if self._first is None and (piece.events or piece.finish):
                        self._first = time.monotonic()
                    left -= piece.finish is not None
                    if not left:
                        self._status = "ok"
                        await self.close()
                yield piece
        except Exception:
            self._status = "error"
            raise

    async def close(self) -> None:
        """End what still runs and write the record, once, however often it is called and whoever is cancelled."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._stream is None:
            return
        self._stream.close()
        usage = self.usage
        if self._ticket is not None:
            self._ticket.close(usage.prompt - usage.cached + usage.completion)
        reasons = {c.finish for c in self.choices if c.finish is not None}
        record = UsageRecord(
            request_id=self.request_id,
            caller=self.caller.key_id,
            organisation=self.caller.organisation,
            dialect=self.dialect,
            endpoint=self.access.path,
            model=self.service.model_id,
            service_tier=self.service_tier,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            reasoning_tokens=usage.reasoning,
            status=self._status,
            finish_reason=",".join(sorted(reasons)) or None,
            started=self.access.started,
            ttft_s=None if self._first is None else self._first - self.access.begun,
            duration_s=time.monotonic() - self.access.begun,
        )
        if self.service.meter is not None:
            try:
                self.cost = await to_thread.run_sync(self.service.meter.settle, record)
            except Exception:
                # The answer is there and paid for with computing time: the client gets it all the same.
                log.exception("the usage of request %s could not be recorded", record.request_id)
        for observer in self.service.observers:
            observer(record)

    def headers(self) -> Mapping[str, str]:
        """What the response says of limits, and of cost where it is known by then."""
        found: dict[str, str] = {}
        if self.service.gate is not None:
            found.update(self.service.gate.headers(self.caller))
        if self.cost is not None:
            found["x-longsight-cost"] = self.cost.header()
        return found
