"""Answers as they come: the engine's updates, taken apart, gathered into pieces worth a packet, and counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from longsight.chat.answer import AnswerReader, Finish
from longsight.chat.events import Arguments, CallEnd, CallStart, Content, Event, Reasoning
from longsight.engine import Request, Stream, TokenLogprob, Update

MIN_CHARS = 5  # text shorter than this waits for more,
MAX_WAIT = 0.05  # so many seconds at most; except a section's first, which is what people wait for


@dataclass(frozen=True)
class Piece:
    """News of the answer `index`.

    progress: tokens of the prompt that have been read, of how many. finish: why the answer has ended, in its last
    piece; stop_string: the one that ended it.
    """

    index: int
    events: Sequence[Event] = ()
    logprobs: Sequence[TokenLogprob] = ()
    progress: tuple[int, int] | None = None
    finish: Finish | None = None
    stop_string: str | None = None


@dataclass(kw_only=True)
class Choice(AnswerReader):
    """One answer under way, gathered into pieces."""

    request: Request
    index: int
    _waiting: list[Event] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _since: float = 0.0  # when the oldest of what waits came
    _last: Event | None = None  # of those that have been sent

    @property
    def flush_at(self) -> float | None:
        """When what waits must be sent, in the clock's time; None if nothing waits."""
        return self._since + MAX_WAIT if self._waiting else None

    def take(self, update: Update, now: float) -> Piece | None:
        """An update's news, or None if they can wait for more."""
        events = self.read(update)
        self._logprobs += [p for p in update.logprobs if p.token not in self.request.stop_ids]
        first = bool(events) and type(events[0]) is not type(self._last)
        for event in events:
            self._gather(event)
        if self._waiting and not self._since:
            self._since = now
        big = sum(_size(e) for e in self._waiting) >= MIN_CHARS
        if self.finish is not None or (self._waiting and (first or big)):
            return self.flush()
        return None

    def flush(self) -> Piece:
        events, self._waiting, self._since = self._waiting, [], 0.0
        logprobs, self._logprobs = self._logprobs, []
        if events:
            self._last = events[-1]
        return Piece(self.index, events, logprobs, finish=self.finish, stop_string=self.stop_string)

    def _gather(self, event: Event) -> None:
        last = self._waiting[-1] if self._waiting else None
        match last, event:
            case (Content(a), Content(b)):
                self._waiting[-1] = Content(a + b)
            case (Reasoning(a), Reasoning(b)):
                self._waiting[-1] = Reasoning(a + b)
            case (Arguments(i, a), Arguments(j, b)) if i == j:
                self._waiting[-1] = Arguments(i, a + b)
            case _:
                self._waiting.append(event)


def _size(event: Event) -> int:
    match event:
        case Content(text) | Reasoning(text):
            return len(text)
        case Arguments(_, json):
            return len(json)
        case CallStart() | CallEnd():
            return MIN_CHARS
    return 0


async def pieces(
    stream: Stream,
    choices: Sequence[Choice],
    *,
    heartbeat: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Piece | None]:
    """The news of all answers until all have ended; None after `heartbeat` seconds of silence.

    Raises the error that ended a request. Answers cut short by a stop string are cancelled in the engine.
    """
    by_request = {choice.request: choice for choice in choices}
    processed = dict.fromkeys(by_request, 0)
    unfinished = len(choices)
    quiet_since = clock()
    while unfinished:
        update = await stream.next(_patience(choices, quiet_since, heartbeat, clock()))
        now = clock()
        if update is None:
            due = [c for c in choices if c.flush_at is not None and c.flush_at <= now]
            for choice in due:
                yield choice.flush()
            if not due and heartbeat is not None and now - quiet_since >= heartbeat:
                yield None
                quiet_since = now
            elif due:
                quiet_since = now
            continue
        choice = by_request[update.request]
        if update.error is not None:
            raise update.error
        if choice.finish is not None:
            continue  # what was generated before the engine heard of the end
        if update.processed > processed[update.request]:
            processed[update.request] = update.processed
            # No news to most protocols: a stream may be silent in spite of it, so it doesn't put off the heartbeat.
            yield Piece(choice.index, progress=(update.processed, len(update.request.prompt)))
        piece = choice.take(update, now)
        if piece is not None:
            yield piece
            quiet_since = now
        if choice.finish is not None:
            unfinished -= 1
            if update.finish_reason is None:
                stream.driver.cancel([update.request])


def _patience(choices: Iterable[Choice], quiet_since: float, heartbeat: float | None, now: float) -> float | None:
    """Seconds until something has to be sent, come what may."""
    times = [c.flush_at for c in choices if c.flush_at is not None]
    if heartbeat is not None:
        times.append(quiet_since + heartbeat)
    return max(min(times) - now, 0.001) if times else None
