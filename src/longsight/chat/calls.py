"""Tool calls in namespaced tags: names, typed arguments, and JSON that grows while the model writes.

NS<tool_call>
NS<invoke name="f">NS<city>ParisNS</city>NS<days>NS<item>1NS</item>NS</days>NS</invoke>
NS</tool_call>
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from longsight.chat.events import Arguments, CallEnd, CallStart, Event
from longsight.chat.schema import ANYTHING, Typed

MAX_TAG = 512  # characters between < and >
MAX_DEPTH = 128
WAIT = -1
MAX_ARGUMENTS = 16 << 20  # characters of one call
_PLAIN = frozenset({"integer", "number", "boolean"})
_SPACE = re.compile(r"\s*")
_TAG = re.compile(r"<\s*(/?)\s*([^\s<>/=]{1,512})([^<>]{0,512})>")
_NAME = re.compile(r"""\bname\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"']+))""")
_BEGINNING = re.compile(r"<\s*/?\s*[^\s<>/=]*[^<>]*")


class Tag(NamedTuple):
    """name: the element's; function: what an <invoke> names. closes: </name>."""

    name: str
    closes: bool
    function: str = ""


def read_tag(text: str, start: int = 0) -> tuple[Tag | None, int]:
    """The tag at `start`, white space before it allowed, and where it ends.

    (None, WAIT): it may still become one. (None, end): there is none, and what is before `end` is text.
    """
    space = cast(re.Match[str], _SPACE.match(text, start)).end()
    if space == len(text):
        return None, WAIT if space - start <= MAX_TAG else space
    found = _TAG.match(text, space)
    if found is not None:
        name = found[2]
        named = _NAME.search(found[3]) if name == "invoke" else None
        function = next((g for g in named.groups() if g is not None), "") if named else ""
        return Tag(name, bool(found[1]), function), found.end()
    if len(text) - space <= MAX_TAG and _BEGINNING.fullmatch(text, space):
        return None, WAIT
    return None, space + text.startswith("<", space)


@dataclass
class _Element:
    """An open element: its place in the schema, its text so far, its children.

    closer: what would be its closing tag without a namespace marker; "" where no such tag is made good. streams: a
    string argument whose text is passed on as it comes; tail: what may yet prove to be the closer.
    """

    name: str
    typed: Typed
    closer: str
    streams: bool = False
    parts: list[str] = field(default_factory=list)
    children: list[tuple[str, Any]] = field(default_factory=list)
    tail: str = ""

    def value(self) -> Any:
        text = "".join(self.parts)
        if not self.children:
            return self.typed.read(_without_closer(text, self.closer))
        if self.typed.is_array or (
            not self.typed.knows("item")
            and "object" not in self.typed.types
            and all(name == "item" for name, _ in self.children)
        ):
            return [value for _, value in self.children]
        found: dict[str, Any] = {}
        for name, value in self.children:
            if name not in found:
                found[name] = value
            elif self.typed.property(name).is_array and isinstance(found[name], list):
                found[name] += value if isinstance(value, list) else [value]
        return found


class CallParser:
    """The inside of a block of calls. `open` while it lasts; text and tags in, events out.

    forgiving: tags without their namespace marker and
    elements without their end are made good; where a grammar writes the calls, there are none, and a value's text that
    looks so is a value. anomalies: counts of what was malformed, by kind; given by the caller, who may have some of
    its own.
    """

    def __init__(
        self,
        tools: Mapping[str, Any],
        *,
        forgiving: bool = True,
        anomalies: Counter[str] | None = None,
    ) -> None:
        self._tools, self._forgiving = tools, forgiving
        self.anomalies: Counter[str] = Counter() if anomalies is None else anomalies
        self.open = False
        self._count = 0
        self._in_block = False
        self._in_call = False
        self._lost = False  # the call under way went over a limit: it will never end
        self._arguments = Typed(ANYTHING, ANYTHING)
        self._stack: list[_Element] = []
        self._names: set[str] = set()  # arguments that have been given
        self._written = 0  # how many of them are in the JSON
        self._waiting: tuple[str, list[Any]] | None = None  # an array that may be repeated right away
        self._size = 0
        self._events: list[Event] = []

    @property
    def in_value(self) -> bool:
        """Whether a tag without a namespace marker would be text, part of an argument. No number looks like one."""
        if not self._forgiving:
            return True
        return bool(self._stack) and not (
            self._stack[-1].typed.types and _PLAIN.issuperset(self._stack[-1].typed.types)
        )

    def text(self, text: str) -> list[Event]:
        """Text between tags: part of the innermost element, or nothing."""
        if self._stack and not self._lost:
            self._size += len(text)
            if self._size > MAX_ARGUMENTS:
                self._lost = True
            else:
                self._value_text(self._stack[-1], text)
        return self._take()

    def tag(self, tag: Tag | None, text: str) -> list[Event]:
        """What follows a namespace marker: a tag, or a text that is none."""
        if tag is not None and tag.name in ("tool_call", "invoke"):
            self._structure(tag)
        elif tag is None:
            return self.text(text)
        elif tag.closes:
            self._close(tag.name, text)
        else:
            self._open(tag.name, text)
        return self._take()

    def cut_off(self) -> list[Event]:
        """The output has ended. A call under way stays without an end."""
        self.anomalies["unfinished_call"] += self._in_call
        if self._stack and self._stack[0].streams:
            self._release(self._stack[0])
        self._stack.clear()
        self.open = self._in_call = self._in_block = False
        return self._take()

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _structure(self, tag: Tag) -> None:
        """<tool_call>, <invoke> and their ends: none of them is ever part of a value, so all that is open ends here."""
        if self._in_call:
            self._end_call()
        if tag.name == "tool_call":
            self.open = self._in_block = not tag.closes
        elif not tag.closes:
            self.open = True
            if tag.function:
                self._begin_call(tag.function)
            else:
                self.anomalies["nameless_call"] += 1
        elif not self._in_block:
            self.open = False  # a call that came without a block around it

    def _begin_call(self, name: str) -> None:
        self._in_call, self._lost, self._size = True, False, 0
        self._names, self._written, self._waiting = set(), 0, None
        schema = self._tools.get(name, ANYTHING)
        self._arguments = Typed(schema, schema)
        self._events += [CallStart(self._count, name), Arguments(self._count, "{")]
        self._count += 1

    def _end_call(self) -> None:
        self.anomalies["unclosed_argument"] += bool(self._stack)
        self.anomalies["oversized_call"] += self._lost
        self._close_all()
        self._end_array()
        self._in_call = False
        if not self._lost:
            self._events += [Arguments(self._count - 1, "}"), CallEnd(self._count - 1)]

    def _open(self, name: str, text: str) -> None:
        if not self._in_call or self._lost:
            return
        if not self._stack:
            self._open_argument(name)
            return
        top = self._stack[-1]
        beside = self._forgiving and len(self._stack) == 1 and self._arguments.knows(name)
        if beside and not self._fits_inside(top, name):
            self.anomalies["unclosed_argument"] += 1
            self._close_all()
            self._open_argument(name)
        elif top.typed.is_string:
            self._value_text(top, text)
        elif len(self._stack) == MAX_DEPTH:
            self._lost = True
        else:
            typed = top.typed.item() if top.typed.is_array else top.typed.property(name)
            self._stack.append(_Element(name, typed, self._closer(name)))

    def _fits_inside(self, element: _Element, name: str) -> bool:
        """Whether an element of that name may belong to `element` rather than stand beside it."""
        typed = element.typed
        if typed.is_array or typed.knows(name):
            return True
        if typed.is_string or set(typed.types) & {"integer", "number", "boolean"}:
            return False
        return not "".join(element.parts).strip()

    def _open_argument(self, name: str) -> None:
        if self._waiting is not None and self._waiting[0] != name:
            self._end_array()
        typed = self._arguments.property(name)
        repeated = self._waiting is not None
        streams = typed.is_string and name not in self._names and not repeated
        element = _Element(name, typed, self._closer(name), streams)
        self._stack.append(element)
        if element.streams:
            self._names.add(name)
            self._emit(self._key(name) + '"')

    def _closer(self, name: str) -> str:
        return f"</{name}>" if self._forgiving else ""

    def _close(self, name: str, text: str) -> None:
        if self._lost or not self._stack:
            return
        if all(element.name != name for element in self._stack):
            if self._stack[-1].typed.is_string:
                self._value_text(self._stack[-1], text)
            return
        while self._stack[-1].name != name:
            self._close_top()
        self._close_top()

    def _close_all(self) -> None:
        while self._stack:
            self._close_top()

    def _close_top(self) -> None:
        element = self._stack.pop()
        if element.streams:
            element.tail = _without_closer(element.tail, element.closer)
            self._release(element)
            self._emit('"')
        elif self._stack:
            self._stack[-1].children.append((element.name, element.value()))
        else:
            self._argument(element)

    def _argument(self, element: _Element) -> None:
        """An argument that was not passed on as it came. Of several of one name the first counts, but arrays grow."""
        name, value = element.name, element.value()
        if self._waiting is not None:
            self._waiting[1].extend(value if isinstance(value, list) else [value])
        elif name in self._names:
            return
        elif element.typed.is_array and isinstance(value, list):
            self._waiting = name, value
        else:
            self._emit(self._key(name) + _json(value))
        self._names.add(name)

    def _end_array(self) -> None:
        if self._waiting is None:
            return
        (name, values), self._waiting = self._waiting, None
        self._emit(self._key(name) + _json(values))

    def _key(self, name: str) -> str:
        self._written += 1
        return ("" if self._written == 1 else ", ") + _json(name) + ": "

    def _emit(self, piece: str) -> None:
        if piece and not self._lost:
            self._events.append(Arguments(self._count - 1, piece))

    def _value_text(self, element: _Element, text: str) -> None:
        if not element.streams:
            element.parts.append(text)
            return
        text = element.tail + text
        held = _possible_closer(text, element.closer)
        element.tail = text[len(text) - held :]
        self._emit(_json(text[: len(text) - held])[1:-1])

    def _release(self, element: _Element) -> None:
        text, element.tail = element.tail, ""
        self._emit(_json(text)[1:-1])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without_closer(text: str, closer: str) -> str:
    """A text without a closing tag of its element at its end, which came without its namespace marker."""
    shorter = text.rstrip()
    return shorter[: -len(closer)] if closer and shorter.endswith(closer) else text


def _possible_closer(text: str, closer: str) -> int:
    """Length of the end of `text` that may be a closing tag without its namespace marker, or become one."""
    if not closer:
        return 0
    shorter = text[-MAX_TAG:].rstrip()  # a closing tag and more white space than this is text
    if shorter.endswith(closer):
        return min(len(text), MAX_TAG) - len(shorter) + len(closer)
    at = text.rfind("<", max(len(text) - len(closer) + 1, 0))
    return len(text) - at if at >= 0 and closer.startswith(text[at:]) else 0
