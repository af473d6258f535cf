"""What a model writes, taken apart while it is written: reasoning, content and tool calls.

One machine for streams and whole answers: the events joined are the same however the text was cut. It never fails, and
no marker reaches the client; what is malformed loses as little as can be. Each character is looked at a bounded number
of times, so a megabyte costs a thousand times a kilobyte.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Literal

from longsight.chat.calls import WAIT, CallParser, Tag, read_tag
from longsight.chat.events import Content, Event, Reasoning
from longsight.chat.markers import Markers
from longsight.model import markup

Start = Literal["reasoning", "content", "undecided"]
_PLAIN = Markers(markup.NAMESPACE, markup.THINK, markup.END_THINK, *markup.TURN_MARKERS)
_IN_VALUE = Markers(markup.NAMESPACE, *markup.TURN_MARKERS)
_BETWEEN = Markers(
    markup.NAMESPACE, *markup.TURN_MARKERS, "<"
)  # in a call but in no value, a tag needs no namespace marker

MAX_IDLE_MARKERS = 16
MAX_SPACE = 512
_ENDLESS = re.compile(rf"\s{{{MAX_SPACE}}}")


class _State(Enum):
    UNDECIDED = auto()
    REASONING = auto()
    CONTENT = auto()
    CALL = auto()
    DONE = auto()


class OutputParser:
    """An answer's text in, events out. `push` as it comes, then `finish`.

    start: the section that the prompt left open; "undecided" where the model itself decides whether to think.
    tools: JSON schema of each tool's arguments; a call of any other name is let through untyped. calls: False ends the
    answer where a call begins, for requests that declare no tools. forgiving: as for CallParser. anomalies: counts of
    what was malformed or dropped, by kind.

    The answer also ends (`ended`) with its turn, with the sixteenth marker in a row that leads to nothing, and,
    unless a grammar writes it, with 512 characters of white space in a row: models that are lost go on so until their
    tokens run out.
    """

    def __init__(
        self,
        start: Start = "undecided",
        tools: Mapping[str, Any] | None = None,
        *,
        calls: bool = True,
        forgiving: bool = True,
    ) -> None:
        self._state = _State[start.upper()]
        self.anomalies: Counter[str] = Counter()
        self._may_call, self._forgiving = calls, forgiving
        self._calls = CallParser(tools or {}, forgiving=forgiving, anomalies=self.anomalies)
        self._pending, self._at = "", 0  # text that has come, and how much of it has been handled
        self._in_tag = False  # a namespace marker has been read, and its tag is yet to come
        # White space at the end of the reasoning or before an answer's first word, joined only when it counts.
        self._held: list[str] = []
        self._begun = False  # whether this section has shown any text
        self._after_block: list[str] | None = None  # text since the last block of calls: dropped if no other follows
        self._idle = 0  # markers in a row that led to nothing
        self._space = 0  # characters of white space in a row
        self._events: list[Event] = []

    @property
    def ended(self) -> bool:
        """Whether nothing that follows is part of the answer."""
        return self._state is _State.DONE

    @property
    def section(self) -> Start:
        """What the output is in the middle of; calls are part of the content."""
        return {_State.UNDECIDED: "undecided", _State.REASONING: "reasoning"}.get(self._state, "content")  # type: ignore[return-value]

    def push(self, text: str) -> list[Event]:
        self._pending += text
        while self._state is not _State.DONE and self._step():
            pass
        self._pending, self._at = self._pending[self._at :], 0
        return self._take_events()

    def finish(self) -> list[Event]:
        """The end of the output: what was held back as a possible beginning of a marker is text after all."""
        rest, self._pending = self._pending, ""
        if self._state is not _State.DONE:
            self._text("" if self._in_tag else rest)
            self._events += self._calls.cut_off()
        self.anomalies["dropped_text"] += any(piece.strip() for piece in self._after_block or ())
        self._state, self._after_block = _State.DONE, None
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return [e for e in events if not isinstance(e, Content | Reasoning) or e.text]

    def _step(self) -> bool:
        """Handle the next piece of what is pending. False: more must come first."""
        if self._in_tag:
            return self._tag()
        markers = _PLAIN
        if self._state is _State.CALL:
            markers = _IN_VALUE if self._calls.in_value else _BETWEEN
        end, marker = markers.first(self._pending, self._at)
        text, self._at = self._pending[self._at : end], end
        self._text(text)
        if marker is None or self._state is _State.DONE:
            return False
        if marker == "<":
            self._in_tag = True
            return True
        self._at += len(marker)
        if marker == markup.NAMESPACE:
            self._in_tag = True
        elif marker in markup.TURN_MARKERS:
            self._end()
        else:
            self._think(opens=marker == markup.THINK)
        return True

    def _end(self) -> None:
        self._events += self._calls.cut_off()
        self._state = _State.DONE

    def _led_nowhere(self) -> None:
        self._idle += 1
        if self._idle == MAX_IDLE_MARKERS:
            self.anomalies["endless_markup"] += 1
            self._end()

    def _tag(self) -> bool:
        tag, end = read_tag(self._pending, self._at)
        if end == WAIT:
            return False
        self._in_tag = False
        if self._state is not _State.CALL and not _is_structure(tag):
            self.anomalies["stray_marker"] += 1
            self._led_nowhere()
            return True  # a false start: what follows is text like any other
        text, self._at = self._pending[self._at : end], end
        if self._state is _State.CALL:
            self._tag_in_call(tag, text)
            if not self._calls.open and self._state is _State.CALL:
                self._state, self._after_block = _State.CONTENT, []
        elif tag is not None and not tag.closes:
            self._begin_calls(tag, text)
        else:
            self._led_nowhere()
        return True

    def _tag_in_call(self, tag: Tag | None, text: str) -> None:
        events = self._calls.tag(tag, text)
        self._events += events
        if events or (text.strip() and not _is_structure(tag)):
            self._idle = 0
        else:
            self._led_nowhere()

    def _begin_calls(self, tag: Tag, text: str) -> None:
        if not self._may_call:
            self.anomalies["undeclared_call"] += 1
            self._end()
            return
        if self._after_block is not None:
            self._events += [Content(piece) for piece in self._after_block]
        self._held, self._after_block = [], None
        self._state = _State.CALL
        self._tag_in_call(tag, text)

    def _think(self, *, opens: bool) -> None:
        """A thinking marker. Those out of place, a second opener or closer, are dropped."""
        if self._state is _State.UNDECIDED:
            self._state = _State.REASONING if opens else _State.CONTENT
        elif self._state is _State.REASONING and not opens:
            self._state = _State.CONTENT
        else:
            self.anomalies["stray_marker"] += 1
            self._led_nowhere()
            return
        self._held, self._begun = [], False

    def _text(self, text: str) -> None:
        if text.strip():
            self._idle = 0
        elif not text:
            return
        if self._state is _State.CALL:
            self._events += self._calls.text(text)
            return
        text, endless = self._before_endless_space(text)
        self._prose(text)
        if endless:
            self.anomalies["endless_space"] += 1
            self._end()

    def _before_endless_space(self, text: str) -> tuple[str, bool]:
        """`text` up to where there are 512 characters of white space in a row, and whether there are."""
        if not self._forgiving:
            return text, False
        leading = len(text) - len(text.lstrip())
        if self._space + leading >= MAX_SPACE:
            return text[: MAX_SPACE - self._space], True
        if found := _ENDLESS.search(text):
            return text[: found.end()], True
        self._space = len(text) - len(text.rstrip()) + (self._space if leading == len(text) else 0)
        return text, False

    def _prose(self, text: str) -> None:
        """Text of the reasoning or the content."""
        if self._state is _State.UNDECIDED:
            self._held.append(text)
            if not text.strip():
                return
            text, self._held = "".join(self._held), []
            self._state = _State.CONTENT
        if not self._begun:
            text = text.lstrip("\n")
            if not text:
                return
        if self._state is _State.REASONING:
            shown = text.rstrip("\n")
            if shown:
                self._events.append(Reasoning("".join(self._held) + shown))
                self._held, self._begun = [], True
            self._held.append(text[len(shown) :])
            return
        self._begun = True
        if self._after_block is not None:
            self._after_block.append(text)
        else:
            self._events.append(Content(text))


def _is_structure(tag: Tag | None) -> bool:
    """Whether a tag is of the markup itself, and so never part of a value."""
    return tag is not None and tag.name in ("tool_call", "invoke")
