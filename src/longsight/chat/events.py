"""What an answer consists of, in the order in which it becomes known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins. index: its place among the answer's calls."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments. All of them joined are one JSON object, once the call has ended."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is complete. One that never ends was cut off: its arguments are not to be used."""

    index: int


Event = Reasoning | Content | CallStart | Arguments | CallEnd


@dataclass
class Call:
    name: str
    arguments: str = ""
    complete: bool = False


@dataclass
class Message:
    """A whole answer. calls: the complete ones."""

    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Message:
        message, calls = cls(), dict[int, Call]()
        for event in events:
            match event:
                case Reasoning(text):
                    message.reasoning += text
                case Content(text):
                    message.content += text
                case CallStart(index, name):
                    calls[index] = Call(name)
                case Arguments(index, json):
                    calls[index].arguments += json
                case CallEnd(index):
                    calls[index].complete = True
        message.calls = [call for call in calls.values() if call.complete]
        return message
