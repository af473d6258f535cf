"""Conversations of the Messages protocol in our own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from longsight.chat.messages import PARAGRAPH, ChatMessage, ToolCall
from longsight.chat.openai_messages import call_name
from longsight.server.anthropic.blocks import block_of, is_foreign, plain, string, text_of, unknown
from longsight.server.errors import invalid, show

FAILED = "Error: "  # before a result that the client marks as a failure: the chat format has no mark of its own
ROLES = ("user", "assistant", "system")


def conversation(system: Any, messages: Sequence[Any]) -> list[ChatMessage]:
    """Raises ApiError 400 naming the block that is wrong, as in messages.0.content.1.

    One message may hold results of tools beside text: the results come first, each a message of its own.
    """
    if not messages:
        raise invalid("messages is empty; it must hold at least one message", "messages")
    found: list[ChatMessage] = []
    if system:
        found.append(ChatMessage("system", text_of(system, "system", PARAGRAPH), path="system"))
    for i, given in enumerate(messages):
        path = f"messages.{i}"
        if not isinstance(given, dict):
            raise invalid(f"{path} is {show(given)}; it must be an object with role and content", path)
        content, at = given.get("content"), f"{path}.content"
        match given.get("role"):
            case "user":
                _add_user(content, at, path, found)
            case "assistant":
                _add_assistant(_assistant(content, at, path), found)
            case "system":
                found.append(ChatMessage("system", text_of(content, at, PARAGRAPH), path=path))
            case role:
                raise invalid(f"{path}.role is {show(role)}; it must be one of {', '.join(ROLES)}", f"{path}.role")
    return found


def _blocks(content: Any, path: str) -> list[tuple[Mapping[str, Any], str]]:
    """Each block with its path; a string is one of text."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, path)]
    if not isinstance(content, list):
        raise invalid(f"{path} is {show(content)}; it must be a string or a list of content blocks", path)
    return [(block_of(block, f"{path}.{i}"), f"{path}.{i}") for i, block in enumerate(content)]


def _add_user(content: Any, at: str, path: str, found: list[ChatMessage]) -> None:
    texts: list[str] = []
    results: list[ChatMessage] = []
    late: list[ChatMessage] = []
    for block, place in _blocks(content, at):
        if is_foreign(block):
            continue
        match block["type"]:
            case "tool_result":
                results.append(_result(block, place))
            case "mid_conv_system":
                late.append(ChatMessage("system", plain(block, place), path=place))
            case "tool_use" | "thinking":
                raise unknown(block, place, "text and tool_result")
            case _:
                texts.append(plain(block, place))
    place_of_results = _after_assistant(found)
    found[place_of_results:place_of_results] = results
    found += late
    if texts or not (results or late):
        found.append(ChatMessage("user", "".join(texts), path=path))


def _after_assistant(found: Sequence[ChatMessage]) -> int:
    """Where results go: clients may spread them over several messages and put text between."""
    at = len(found)
    while at and found[at - 1].role in ("user", "system"):
        at -= 1
    return at or len(found)


def _result(block: Mapping[str, Any], path: str) -> ChatMessage:
    text = text_of(block.get("content") or "", f"{path}.content")
    if block.get("is_error") is True:
        text = FAILED + text
    return ChatMessage("tool", text, call_id=string(block, "tool_use_id", path), path=path)


def _assistant(content: Any, at: str, path: str) -> ChatMessage:
    """Whoever signed the thinking: a conversation may have begun with another model."""
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for block, place in _blocks(content, at):
        if is_foreign(block):
            continue
        match block["type"]:
            case "thinking":
                thoughts.append(string(block, "thinking", place))
            case "tool_use":
                calls.append(_call(block, place))
            case "text":
                texts.append(plain(block, place))
            case _:
                raise unknown(block, place, "text, thinking and tool_use")
    return ChatMessage("assistant", "".join(texts), "".join(thoughts) if thoughts else None, tuple(calls), path=path)


def _add_assistant(message: ChatMessage, found: list[ChatMessage]) -> None:
    """What the assistant said in several messages running is one turn."""
    last = found[-1] if found else None
    if last is None or last.role != "assistant":
        found.append(message)
        return
    thoughts = [m.reasoning for m in (last, message) if m.reasoning is not None]
    reasoning = "".join(thoughts) if thoughts else None
    found[-1] = replace(
        last, content=last.content + message.content, reasoning=reasoning, calls=last.calls + message.calls
    )


def _call(block: Mapping[str, Any], path: str) -> ToolCall:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise invalid(f"{path}.input is {show(arguments)}; it must be a JSON object", f"{path}.input")
    return ToolCall(string(block, "id", path), call_name(block.get("name"), f"{path}.name"), arguments)
