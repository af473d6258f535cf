"""A conversation as the protocol's items, brought to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from longsight.chat.messages import ChatMessage, Role, ToolCall
from longsight.chat.openai_messages import arguments_of, call_name, no_media
from longsight.server.errors import invalid, show
from longsight.server.responses.tools import INPUT, model_name
from longsight.server.signing import Signer

ROLES: Mapping[str, Role] = {
    "root": "root",
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal")
MEDIA = ("input_image", "input_file", "input_audio", "input_video", "image_url", "video_url")
CALLS = ("function_call", "custom_tool_call")
RESULTS = ("function_call_output", "custom_tool_call_output")


@dataclass
class Conversation:
    """Items in, messages out. Neighbouring items of the assistant's are one message; results follow their calls,
    wherever they stood. warnings: what was passed over.

    signer: knows the thinking again that this server has signed; what others have signed is passed over.
    """

    signer: Signer
    warnings: list[str] = field(default_factory=list)
    _messages: list[ChatMessage] = field(default_factory=list)
    _answer: ChatMessage | None = None  # of the assistant, still growing
    _results: dict[str, ChatMessage] = field(default_factory=dict)
    _placed: set[str] = field(default_factory=set)

    def messages(self, items: Sequence[tuple[str, Any]]) -> list[ChatMessage]:
        """items: each with its place in the request. Raises ApiError 400 naming the place."""
        for path, item in items:
            self._note_result(path, item)
        for path, item in items:
            self._add(path, item)
        self._close()
        return self._messages

    def _note_result(self, path: str, item: Any) -> None:
        if not isinstance(item, dict) or item.get("type") not in RESULTS:
            return
        call = item.get("call_id")
        if not isinstance(call, str):
            raise invalid(
                f"{path}.call_id is {show(call)}; it must be the id of the call that this item answers",
                f"{path}.call_id",
            )
        if call in self._results:
            raise invalid(f"{path} answers the call {call!r} a second time", path)
        self._results[call] = ChatMessage(
            "tool", text_of(item.get("output"), f"{path}.output", self.warnings), call_id=call, path=path
        )

    def _add(self, path: str, item: Any) -> None:
        if not isinstance(item, dict):
            raise invalid(f"{path} is {show(item)}; it must be an object", path)
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            self._message(path, item)
        elif kind == "reasoning":
            self._reasoning(path, item)
        elif kind in CALLS:
            self._call(path, item)
        elif kind in RESULTS:
            self._close()
            if item["call_id"] not in self._placed:
                self._messages.append(self._results[item["call_id"]])
        else:
            self.warnings.append(f"{path} of type {show(kind)} is not known to this server")

    def _message(self, path: str, item: Mapping[str, Any]) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise invalid(f"{path}.role is {show(role)}; it must be one of {', '.join(ROLES)}", f"{path}.role")
        text = text_of(item.get("content"), f"{path}.content", self.warnings)
        if ROLES[role] == "assistant":
            answer = self._growing(path)
            self._answer = replace(answer, content=answer.content + text)
        else:
            self._close()
            self._messages.append(ChatMessage(ROLES[role], text, path=path))

    def _reasoning(self, path: str, item: Mapping[str, Any]) -> None:
        text = self._thought(path, item)
        if text is None:
            return
        answer = self._growing(path)
        if answer.content or answer.calls:
            self._close()
            answer = self._growing(path)
        self._answer = replace(answer, reasoning=(answer.reasoning or "") + text)

    def _thought(self, path: str, item: Mapping[str, Any]) -> str | None:
        sealed = item.get("encrypted_content")
        found = self.signer.unseal(sealed) if isinstance(sealed, str) else None
        if found is not None:
            return found
        for part in ("content", "summary"):
            if item.get(part):
                return text_of(item[part], f"{path}.{part}", self.warnings)
        return None

    def _call(self, path: str, item: Mapping[str, Any]) -> None:
        if item.get("status") == "incomplete":
            self.warnings.append(f"{path} is a call that was cut off")
            return
        call = item.get("call_id")
        if not isinstance(call, str):
            raise invalid(f"{path}.call_id is {show(call)}; it must be a string", f"{path}.call_id")
        name = call_name(model_name(item.get("name"), item.get("namespace")), f"{path}.name")
        if item["type"] == "function_call":
            arguments = arguments_of(item.get("arguments"), f"{path}.arguments")
        else:
            arguments = {INPUT: text_of(item.get("input"), f"{path}.input", self.warnings)}
        answer = self._growing(path)
        self._answer = replace(answer, calls=(*answer.calls, ToolCall(call, name, arguments)))

    def _growing(self, path: str) -> ChatMessage:
        if self._answer is None:
            self._answer = ChatMessage("assistant", path=path)
        return self._answer

    def _close(self) -> None:
        if self._answer is None:
            return
        self._messages.append(self._answer)
        for call in self._answer.calls:
            if call.id in self._results and call.id not in self._placed:
                self._messages.append(self._results[call.id])
                self._placed.add(call.id)
        self._answer = None


def text_of(content: Any, path: str, warnings: list[str]) -> str:
    """A text, or the texts of text parts, joined as they are."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(f"{path} is {show(content)}; it must be text or a list of text parts", path)
    return "".join(_part(part, f"{path}.{i}", warnings) for i, part in enumerate(content))


def _part(part: Any, path: str, warnings: list[str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in MEDIA:
        raise no_media(path, str(kind))
    if kind not in TEXTS:
        if not isinstance(kind, str):
            raise invalid(f"{path} is {show(part)}; it must be an object with a type", path)
        warnings.append(f"{path} of type {show(kind)} is not known to this server")
        return ""
    key = "refusal" if kind == "refusal" else "text"
    if not isinstance(part.get(key), str):
        raise invalid(f"{path}.{key} is {show(part.get(key))}; it must be a string", f"{path}.{key}")
    return str(part[key])
