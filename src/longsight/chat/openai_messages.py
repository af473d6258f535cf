"""OpenAI's chat messages and tools in our own form, checked on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longsight.chat.errors import ChatError, show
from longsight.chat.messages import ChatMessage, Role, Tool, ToolCall
from longsight.chat.request import ToolChoice

ROLES: Mapping[str, Role] = {
    "root": "root",
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
MEDIA = ("image_url", "video_url", "input_audio", "file")
_KNOWN = frozenset({"role", "content", "tool_calls", "tool_call_id", "reasoning_content", "reasoning_details"})
CHOICES = 'none, auto, required, or {"type": "function", "function": {"name": ...}}'


def messages(given: Sequence[Any]) -> list[ChatMessage]:
    """Raises ChatError naming the message and the part of it that is wrong."""
    if not given:
        raise ChatError("messages is empty; it must hold at least one message", "messages")
    return [_message(message, f"messages.{i}") for i, message in enumerate(given)]


def _message(given: Any, path: str) -> ChatMessage:
    if not isinstance(given, dict):
        raise ChatError(f"{path} is {show(given)}; it must be an object with role and content", path)
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise ChatError(f"{path}.role is {show(role)}; it must be one of {', '.join(ROLES)}", f"{path}.role")
    calls = _calls(given.get("tool_calls"), f"{path}.tool_calls") if role == "assistant" else ()
    content = given.get("content")
    if content is None and (calls or (role == "assistant" and isinstance(given.get("reasoning_content"), str))):
        content = ""
    call_id = given.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str):
        raise ChatError(
            f"{path}.tool_call_id is {show(call_id)}; it must be the id of the call that this message answers",
            f"{path}.tool_call_id",
        )
    return ChatMessage(
        ROLES[role],
        text_of(content, f"{path}.content"),
        _reasoning(given) if role == "assistant" else None,
        calls,
        call_id if role == "tool" else None,
        path,
        {k: v for k, v in given.items() if k not in _KNOWN},
    )


def text_of(content: Any, path: str) -> str:
    """A text, or the texts of text parts, joined as they are."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ChatError(f"{path} is {show(content)}; it must be text or a list of text parts", path)
    return "".join(_part(part, f"{path}.{i}") for i, part in enumerate(content))


def _part(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in MEDIA:
        raise no_media(path, str(kind))
    if kind not in ("text", "refusal"):
        raise ChatError(f"{path} is of type {show(kind)}; this server accepts text parts", path)
    if not isinstance(part.get(kind), str):
        raise ChatError(f"{path}.{kind} is {show(part.get(kind))}; it must be a string", f"{path}.{kind}")
    return str(part[kind])


def no_media(path: str, kind: str) -> ChatError:
    """A picture or film for a model that reads text."""
    return ChatError(
        f"{path} is of type {kind}; the model on this server reads text only", path, code="unsupported_media"
    )


def _reasoning(given: Mapping[str, Any]) -> str | None:
    """What the assistant thought, in either of the forms in which clients send it back."""
    plain, details = given.get("reasoning_content"), given.get("reasoning_details")
    if isinstance(plain, str):
        return plain
    if isinstance(details, list):
        texts = [d["text"] for d in details if isinstance(d, dict) and isinstance(d.get("text"), str)]
        return "".join(texts) if texts else None
    return None


def _calls(given: Any, path: str) -> tuple[ToolCall, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise ChatError(f"{path} is {show(given)}; it must be a list of calls", path)
    return tuple(_call(call, f"{path}.{i}") for i, call in enumerate(given))


def _call(given: Any, path: str) -> ToolCall:
    function = given.get("function") if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(given.get("id"), str):
        raise ChatError(f"{path} is {show(given)}; it must have an id and a function with name and arguments", path)
    return ToolCall(
        given["id"],
        call_name(function.get("name"), f"{path}.function.name"),
        arguments_of(function.get("arguments"), f"{path}.function.arguments"),
    )


def call_name(given: Any, path: str) -> str:
    """The name of a tool that has been called; held to what declarations are held to."""
    return Tool.declare({"name": given}, path.removesuffix(".name")).name


def arguments_of(given: Any, path: str) -> Mapping[str, Any]:
    """A call's arguments, which clients keep as JSON text."""
    try:
        found = json.loads(given) if isinstance(given, str) and given.strip() else given or {}
    except (ValueError, RecursionError) as error:
        raise ChatError(f"{path} is not valid JSON: {error}", path) from error
    if not isinstance(found, dict):
        raise ChatError(f"{path} is {show(given)}; it must be a JSON object, as text", path)
    return found


def tools(given: Sequence[Any] | None) -> list[Tool]:
    """Declared functions, each schema's keys in the caller's order."""
    found: list[Tool] = []
    for i, tool in enumerate(given or ()):
        path = f"tools.{i}"
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise ChatError(f'{path} is {show(tool)}; it must be {{"type": "function", "function": {{...}}}}', path)
        # What the server is asked to hold is not for the model to read.
        function = {key: value for key, value in tool["function"].items() if key != "strict"}
        found.append(Tool.declare(function, f"{path}.function", tool["function"].get("strict")))
    return found


def tool_choice(given: Any, tools: Sequence[Tool], path: str = "tool_choice") -> ToolChoice:
    """Raises ChatError for a choice that is none, and for one of a tool that is not declared."""
    if given is None or given == "auto":
        return ToolChoice()
    if given == "none":
        return ToolChoice("none")
    name: Any = None
    if given != "required":
        if not isinstance(given, dict) or given.get("type") != "function":
            raise ChatError(f"{path} is {show(given)}; it must be {CHOICES}", path)
        function = given.get("function")
        name = function.get("name") if isinstance(function, dict) else given.get("name")
    return required(name, tools, path, any_tool=given == "required")


def required(name: Any, tools: Sequence[Tool], path: str, *, any_tool: bool) -> ToolChoice:
    """At least one call: of any tool, or of the named one."""
    names = [tool.name for tool in tools]
    if not any_tool and name not in names:
        raise ChatError(f"{path} names the tool {show(name)}; declared are {', '.join(names) or 'none'}", path)
    if not names:
        raise ChatError(f"{path} asks for a call, but no tools are declared", path)
    return ToolChoice("required", None if any_tool else str(name))
