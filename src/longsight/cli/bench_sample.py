"""One request of a bench: when what of its stream arrived."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")


class StreamError(Exception):
    """The stream told of an error, or is not one of chat completions."""


@dataclass
class Sample:
    """Times are seconds of one clock. due: when the request should have been sent; sent: when it was.

    arrivals: of each piece with text; ended: of the last piece. Token counts are the server's own (usage), None where
    it gave none. finished: the stream has come to its end. error: what went wrong, in few words, the same for the same
    fault; detail: all of it.
    """

    due: float
    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    ended: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    usage_tokens: int | None = None
    finished: bool = False
    error: str | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.finished and self.error is None

    @property
    def output_tokens(self) -> int:
        """As the server counts them; without its usage, as many as pieces came."""
        return len(self.arrivals) if self.usage_tokens is None else self.usage_tokens

    @property
    def ttft(self) -> float | None:
        return self.arrivals[0] - self.due if self.arrivals else None

    @property
    def latency(self) -> float | None:
        return None if self.ended is None else self.ended - self.due

    @property
    def tpot(self) -> float | None:
        """None for an answer of one token, which has no time between tokens."""
        if self.ended is None or not self.arrivals or self.output_tokens < 2:
            return None
        return (self.ended - self.arrivals[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


class StreamReader:
    """Takes the bytes of server-sent events as they arrive, and notes what they tell in a sample."""

    def __init__(self, sample: Sample) -> None:
        self.sample, self._rest, self._done = sample, b"", False

    def feed(self, data: bytes, now: float) -> None:
        """now: when they arrived. Raises StreamError."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def finish(self) -> None:
        """The connection has ended. Raises StreamError if the answer had not."""
        if self.sample.ended is None or not self._done:
            raise StreamError("the stream broke off")
        if not self.sample.arrivals:
            raise StreamError("the answer has no text")
        self.sample.finished = True

    def _event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise StreamError("an event is not JSON") from None
        if not isinstance(event, dict):
            raise StreamError("an event is not an object")
        if event.get("error"):
            raise StreamError(f"error in the stream: {describe(event)}")
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in TEXT_FIELDS):
                self.sample.arrivals.append(now)
            self.sample.ended = now
        if usage := event.get("usage"):
            self.sample.prompt_tokens = usage.get("prompt_tokens")
            self.sample.usage_tokens = usage.get("completion_tokens")
            self.sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def describe(body: Any) -> str:
    """The message of an error in any server's JSON."""
    error = body.get("error") if isinstance(body, Mapping) else body
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message if message is not None else body)[:500]
