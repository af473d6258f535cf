"""Answers as they come: the engine's updates, taken apart, gathered into pieces worth a packet, and counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from longsight.chat.events import Arguments, CallEnd, CallStart, Content, Event, Reasoning
from longsight.chat.parser import OutputParser
from longsight.engine import Request, Stream, TokenLogprob, Update
from longsight.engine.text import StopScanner
from longsight.model.markup import END_THINK

Finish = Literal["stop", "length", "calls", "stop_string"]
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


@dataclass
class Choice:
    """One answer under way.

    parser None: the text is all there is to it (text completions). stop: strings that end the content. max_calls:
    further calls are left out. end_think_id: the token that closes the thinking, where it is one.
    """

    request: Request
    index: int
    parser: OutputParser | None = None
    stop: Sequence[str] = ()
    end_think_id: int | None = None
    max_calls: int | None = None
    tokens: int = 0
    reasoning_tokens: int = 0
    calls: int = 0
    finish: Finish | None = None
    stop_string: str | None = None
    _undecided: int = 0  # tokens that may prove to be the opener of the thinking
    _scanner: StopScanner = field(init=False)
    _waiting: list[Event] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    _since: float = 0.0  # when the oldest of what waits came
    _last: Event | None = None  # of those that have been sent

    def __post_init__(self) -> None:
        self._scanner = StopScanner(self.stop)

    @property
    def flush_at(self) -> float | None:
        """When what waits must be sent, in the clock's time; None if nothing waits."""
        return self._since + MAX_WAIT if self._waiting else None

    def take(self, update: Update, now: float) -> Piece | None:
        """An update's news, or None if they can wait for more."""
        before = self.parser.section if self.parser is not None else "content"
        events = self._events(update)
        self._count(update, before)
        self._logprobs += [p for p in update.logprobs if p.token not in self.request.stop_ids]
        first = bool(events) and type(events[0]) is not type(self._last)
        for event in events:
            self._gather(event)
        if self._waiting and not self._since:
            self._since = now
        if self.finish is None and update.finish_reason is not None:
            self.finish = "length" if update.finish_reason == "length" else "calls" if self.calls else "stop"
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

    def _events(self, update: Update) -> list[Event]:
        """What the update's text comes to, up to a stop string in the content."""
        if self.parser is None:
            return [Content(update.text)] if update.text else []
        events = self.parser.push(update.text) if update.text else []
        if update.finish_reason is not None:
            events += self.parser.finish()
        if self.max_calls is not None:
            events = [e for e in events if isinstance(e, Content | Reasoning) or e.index < self.max_calls]
        if not self.stop:
            self.calls += sum(isinstance(e, CallEnd) for e in events)
            return events
        shown: list[Event] = []
        for event in events:
            if not isinstance(event, Content):
                self._show(self._scanner.flush(), shown)
                shown.append(event)
                self.calls += isinstance(event, CallEnd)
                continue
            self._show(self._scanner.push(event.text), shown)
            if self._scanner.stopped:
                self.finish, self.stop_string = "stop_string", self._scanner.found
                return shown
        if update.finish_reason is not None:
            self._show(self._scanner.flush(), shown)
        return shown

    @staticmethod
    def _show(text: str, shown: list[Event]) -> None:
        if text:
            shown.append(Content(text))

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

    def _count(self, update: Update, before: str) -> None:
        """Tokens up to and including the one that closes the thinking are reasoning; where the closer is several
        tokens, those that came in the same step count too."""
        count = len(update.tokens)
        self.tokens += count
        if self.parser is None or before == "content":
            return
        after = self.parser.section
        if after == "undecided":
            self._undecided += count
        elif after == "reasoning":
            self.reasoning_tokens += self._undecided + count
            self._undecided = 0
        elif before == "reasoning":
            closer = self.end_think_id
            place = update.tokens.index(closer) + 1 if closer is not None and closer in update.tokens else count
            self.reasoning_tokens += place


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


def end_think_id(added_tokens: object) -> int | None:
    """The token that closes thinking, in vocabularies that have one."""
    found = added_tokens.get(END_THINK) if isinstance(added_tokens, dict) else None
    return found if isinstance(found, int) else None
