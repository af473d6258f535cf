"""An answer under way: the engine's updates in, reasoning, content and calls out, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from longsight.chat.events import CallEnd, Content, Event, Reasoning
from longsight.chat.parser import OutputParser
from longsight.engine import Update
from longsight.engine.text import StopScanner

Finish = Literal["stop", "length", "calls", "stop_string"]


@dataclass
class AnswerReader:
    """parser None: the text is all there is to it (text completions). stop: strings that end the content. max_calls:
    the answer ends with that call. end_think_id: the token that closes the thinking, where it is one. ignore_end: count
    what the model writes after the end of its turn, too, for ignore_eos.

    finish: why the answer has ended; whoever reads then cancels a request that still runs. stop_string: the one that
    ended it.
    """

    parser: OutputParser | None = None
    stop: Sequence[str] = ()
    end_think_id: int | None = None
    max_calls: int | None = None
    ignore_end: bool = False
    tokens: int = 0
    reasoning_tokens: int = 0
    calls: int = 0
    finish: Finish | None = None
    stop_string: str | None = None
    _undecided: int = 0  # tokens that may prove to be the opener of the thinking
    _scanner: StopScanner = field(init=False)

    def __post_init__(self) -> None:
        self._scanner = StopScanner(self.stop)

    def read(self, update: Update) -> list[Event]:
        """What an update adds. Nothing may be read once `finish` is set."""
        before = self.parser.section if self.parser is not None else "content"
        events = self._events(update)
        self._count(update, before)
        if self.finish is None and update.finish_reason is not None:
            self.finish = "length" if update.finish_reason == "length" else self._own_end
        elif self.finish is None and self._turn_ended:
            self.finish = self._own_end
        return events

    @property
    def _own_end(self) -> Finish:
        return "calls" if self.calls else "stop"

    @property
    def _turn_ended(self) -> bool:
        """Whether nothing that follows would be part of the answer."""
        if self.parser is None or self.ignore_end:
            return False
        return self.parser.ended or (self.max_calls is not None and self.calls >= self.max_calls)

    def _events(self, update: Update) -> list[Event]:
        """What the update's text comes to, up to a stop string in the content."""
        if self.parser is None:
            return [Content(update.text)] if update.text else []
        events = self.parser.push(update.text) if update.text else []
        ended = update.finish_reason is not None or self.parser.ended
        if ended:
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
        if ended:
            self._show(self._scanner.flush(), shown)
        return shown

    @staticmethod
    def _show(text: str, shown: list[Event]) -> None:
        if text:
            shown.append(Content(text))

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
