"""Conversations in the one form that every protocol is brought to, and what makes one sound."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from longsight.chat.errors import ChatError

Role = Literal["root", "system", "user", "assistant", "tool"]
Thinking = Literal["adaptive", "enabled", "disabled"]
PARAGRAPH = "\n\n"
MAX_NAME = 256
_BAD_NAME = re.compile(r'[\s"<>\]\[]')
# Thinking as clients send it back inside the content: M3's own tags, or the plain ones that most protocols show.
_INLINE = re.compile(r"\s*<((?:mm:)?)think>(.*?)</\1think>\n*", re.DOTALL)


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. function: its declaration as the caller wrote it, keys in the caller's order.

    parameters: JSON schema of the arguments; an empty one allows anything. strict: a call's arguments must fit it.
    """

    name: str
    parameters: Mapping[str, Any]
    function: Mapping[str, Any]
    strict: bool = False

    @classmethod
    def declare(cls, function: Mapping[str, Any], path: str, strict: Any = None) -> Tool:
        """Raises ChatError for a name that the markup cannot carry, a schema that is no object, or a `strict` that is
        no truth value."""
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name or len(name) > MAX_NAME or _BAD_NAME.search(name):
            raise ChatError(
                f"{path}.name is {name!r:.80}; it must be a text of 1 to {MAX_NAME} characters without white space, "
                "quotes, or brackets of these kinds: < > [ ]",
                f"{path}.name",
            )
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ChatError(
                f"{path}.parameters is {parameters!r:.80}; it must be a JSON schema, an object", f"{path}.parameters"
            )
        if not isinstance(strict, bool | None):
            raise ChatError(f"{path}.strict is {strict!r:.80}; it must be true or false", f"{path}.strict")
        return cls(name, parameters or {}, function, strict is True)


@dataclass(frozen=True)
class ToolCall:
    """A call that the assistant made in an earlier turn."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class ChatMessage:
    """One message. reasoning: what the assistant thought before its content. call_id: the call that a tool message
    answers. path: where the message stands in the request, for errors. extra: what else the client sent with it."""

    role: Role
    content: str = ""
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    path: str = "messages"
    extra: Mapping[str, Any] = field(default_factory=dict)


def settle(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The conversation as templates take it: at most one root and one system message, at the head, each run of tool
    results complete and in the order of the calls, the thinking of assistants apart from what they said.

    A system message further on becomes a paragraph before the next user message: templates would drop it. Raises
    ChatError for results without a call, calls without a result, and a root message that is not the first.
    """
    if not messages:
        raise ChatError("messages is empty; it must hold at least one message")
    head, rest = _head(messages)
    turns: list[ChatMessage] = []
    late: list[str] = []  # system messages that wait for the next user message
    at = 0
    while at < len(rest):
        message = rest[at]
        at += 1
        if message.role == "system":
            late.append(message.content)
        elif message.role == "user":
            turns.append(replace(message, content=PARAGRAPH.join([*late, message.content])))
            late.clear()
        elif message.role == "assistant":
            _flush(late, turns)
            turns.append(_apart(message))
            if message.calls:
                results, at = _results(rest, at, message, late)
                turns += results
        elif message.role == "tool":
            raise ChatError(
                f"{message.path} answers {message.call_id!r}, but the assistant's message before it called no tool",
                message.path,
            )
        else:
            raise ChatError(f"{message.path} has the role root, which only the first message may have", message.path)
    _flush(late, turns)
    return head + turns


def _head(messages: Sequence[ChatMessage]) -> tuple[list[ChatMessage], Sequence[ChatMessage]]:
    head: list[ChatMessage] = []
    at = 0
    if messages[0].role == "root":
        head.append(messages[0])
        at = 1
    first = at
    while at < len(messages) and messages[at].role == "system":
        at += 1
    if at > first:
        texts = [m.content for m in messages[first:at] if m.content]
        head.append(replace(messages[first], content=PARAGRAPH.join(texts)))
    return head, messages[at:]


def _flush(late: list[str], turns: list[ChatMessage]) -> None:
    if late:
        turns.append(ChatMessage("user", PARAGRAPH.join(late)))
        late.clear()


def _apart(message: ChatMessage) -> ChatMessage:
    if message.reasoning is not None:
        return message
    found = _INLINE.match(message.content)
    if found is None:
        return message
    return replace(message, reasoning=found[2].strip("\n"), content=message.content[found.end() :])


def _results(
    rest: Sequence[ChatMessage], at: int, asking: ChatMessage, late: list[str]
) -> tuple[list[ChatMessage], int]:
    """The results of one message's calls, in the order of the calls: what is rendered names neither call nor tool."""
    found: dict[str, ChatMessage] = {}
    ids = [call.id for call in asking.calls]
    while at < len(rest) and rest[at].role in ("tool", "system"):
        message = rest[at]
        if message.role == "system":
            if len(found) == len(ids):
                break
            late.append(message.content)
        elif message.call_id not in ids:
            raise ChatError(
                f"{message.path} answers the call {message.call_id!r}; the open calls are {', '.join(map(repr, ids))}",
                message.path,
            )
        elif message.call_id in found:
            raise ChatError(f"{message.path} answers the call {message.call_id!r} a second time", message.path)
        else:
            found[message.call_id] = message
        at += 1
    missing = [i for i in ids if i not in found]
    if missing:
        raise ChatError(
            f"{asking.path} made calls that no tool message answers: {', '.join(map(repr, missing))}", asking.path
        )
    return [found[i] for i in ids], at
