"""An answer's pieces put together as a response object, and told as the protocol's events on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from longsight.chat.answer import Finish
from longsight.chat.events import Arguments, CallEnd, CallStart, Content, Event, Reasoning
from longsight.server.answers import Piece
from longsight.server.errors import ApiError
from longsight.server.exchange import Exchange
from longsight.server.responses.output import CallItem, CustomCallItem, Item, MessageItem, ReasoningItem, Status
from longsight.server.responses.tools import Toolbox
from longsight.server.signing import Signer

Told = dict[str, Any]  # one event
# The protocol has a closed list of what may go wrong inside a response; anything else is the server's error.
ERROR_CODES: Mapping[str, str] = {"rate_limit_error": "rate_limit_exceeded", "invalid_request_error": "invalid_prompt"}


@dataclass
class Assembly:
    """base: the response object's fields that stay as they are. as_summary: thinking is told as a summary. signer:
    signs the thinking; None where nobody asked for that. Call `begin`, `add` for each piece, `end`, and `final`."""

    base: Mapping[str, Any]
    toolbox: Toolbox
    as_summary: bool = False
    signer: Signer | None = None
    _items: list[Item] = field(default_factory=list)
    _told: int = 0
    _finish: Finish = "stop"

    def begin(self) -> Iterator[Told]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def add(self, piece: Piece) -> Iterator[Told]:
        self._finish = piece.finish or self._finish
        for event in piece.events:
            yield from self._take(event)

    def end(self) -> Iterator[Told]:
        """The end of the last item. An answer of nothing at all is an empty message."""
        if not self._items:
            yield from self._open(MessageItem())
        # A call still open never ended, whatever the reason: its arguments are not to be used.
        cut = self._finish == "length" or isinstance(self._items[-1], CallItem)
        yield from self._close("incomplete" if cut else "completed")

    def final(self, exchange: Exchange) -> Told:
        """The last event, with the whole response."""
        status = "incomplete" if self._finish == "length" else "completed"
        fields: dict[str, Any] = {"completed_at": int(time.time())} if status == "completed" else {}
        if status == "incomplete":
            fields["incomplete_details"] = {"reason": "max_output_tokens"}
        return self._event(f"response.{status}", response=self._response(status, usage=usage(exchange), **fields))

    def failure(self, error: ApiError, exchange: Exchange) -> Told:
        """The last event when the answer came to nothing."""
        told = {"code": ERROR_CODES.get(error.type, "server_error"), "message": str(error)}
        return self._event("response.failed", response=self._response("failed", error=told, usage=usage(exchange)))

    def _take(self, event: Event) -> Iterator[Told]:
        match event:
            case Reasoning(text):
                if not isinstance(self._current, ReasoningItem):
                    yield from self._open(ReasoningItem(as_summary=self.as_summary, signer=self.signer))
                yield from self._push(text)
            case Content(text):
                if not isinstance(self._current, MessageItem):
                    yield from self._open(MessageItem())
                yield from self._push(text)
            case CallStart(_, name):
                caller = self.toolbox.caller(name)
                yield from self._open(CustomCallItem(caller) if caller.kind == "custom" else CallItem(caller))
            case Arguments(_, json):
                yield from self._push(json)
            case CallEnd():
                yield from self._close("completed")

    @property
    def _current(self) -> Item | None:
        return self._items[-1] if self._items and self._items[-1].status == "in_progress" else None

    def _open(self, item: Item) -> Iterator[Told]:
        yield from self._close("incomplete" if isinstance(self._current, CallItem) else "completed")
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=item.shown())
        yield from self._of_item(item.open())

    def _push(self, text: str) -> Iterator[Told]:
        if self._current is not None:
            yield from self._of_item(self._current.push(text))

    def _close(self, status: Status) -> Iterator[Told]:
        item = self._current
        if item is None:
            return
        item.status = status
        yield from self._of_item(item.close())
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item.shown())

    def _of_item(self, told: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Told]:
        index = len(self._items) - 1
        for kind, fields in told:
            yield self._event(kind, item_id=self._items[index].id, output_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> Told:
        event = {"type": kind, "sequence_number": self._told, **fields}
        self._told += 1
        return event

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        started = status == "in_progress"
        output = [] if started else [item.shown() for item in self._items]
        return {**self.base, "status": status, "output": output, **fields}


def usage(exchange: Exchange) -> dict[str, Any]:
    used = exchange.usage
    found: dict[str, Any] = {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": used.reasoning},
        "total_tokens": used.prompt + used.completion,
    }
    if exchange.cost is not None:
        found["cost"] = exchange.cost.as_json()
    return found
