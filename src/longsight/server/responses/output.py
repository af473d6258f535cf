"""The items that an answer consists of, as they grow: each says what a client hears of it."""

from __future__ import annotations

import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from longsight.server.responses.tools import INPUT, Caller
from longsight.server.signing import Signer

Status = Literal["in_progress", "completed", "incomplete"]
Told = tuple[str, dict[str, Any]]  # an event's type, and its fields beside those that all events of an item share


class Item(ABC):
    prefix: ClassVar[str]

    def __init__(self) -> None:
        self.id = f"{self.prefix}_{secrets.token_hex(16)}"
        self.text = ""
        self.status: Status = "in_progress"

    @abstractmethod
    def shown(self) -> dict[str, Any]:
        """The item as it stands."""

    def open(self) -> Iterator[Told]:
        return iter(())

    def push(self, text: str) -> Iterator[Told]:
        self.text += text
        yield from self.delta(text)

    @abstractmethod
    def delta(self, text: str) -> Iterator[Told]:
        """What is told of more text."""

    @abstractmethod
    def close(self) -> Iterator[Told]:
        """What is told before the item is done. The status has been set."""


class MessageItem(Item):
    prefix = "msg"

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}

    def shown(self) -> dict[str, Any]:
        content = [] if self.status == "in_progress" else [self._part(self.text)]
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def open(self) -> Iterator[Told]:
        yield "response.content_part.added", {"content_index": 0, "part": self._part("")}

    def delta(self, text: str) -> Iterator[Told]:
        yield "response.output_text.delta", {"content_index": 0, "delta": text, "logprobs": []}

    def close(self) -> Iterator[Told]:
        yield "response.output_text.done", {"content_index": 0, "text": self.text, "logprobs": []}
        yield "response.content_part.done", {"content_index": 0, "part": self._part(self.text)}


class ReasoningItem(Item):
    """Thinking, as the item's content; as its summary if the caller asked for one. signer: None without a blob."""

    prefix = "rs"

    def __init__(self, *, as_summary: bool, signer: Signer | None) -> None:
        super().__init__()
        self._as_summary, self._signer = as_summary, signer

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text" if self._as_summary else "reasoning_text", "text": text}

    def shown(self) -> dict[str, Any]:
        done = self.status != "in_progress"
        parts = [self._part(self.text)] if done else []
        item: dict[str, Any] = {"id": self.id, "type": "reasoning", "status": self.status}
        item["summary"] = parts if self._as_summary else []
        if not self._as_summary:
            item["content"] = parts
        if self._signer is not None:
            item["encrypted_content"] = self._signer.seal(self.text) if done else None
        return item

    def open(self) -> Iterator[Told]:
        if self._as_summary:
            yield "response.reasoning_summary_part.added", {"summary_index": 0, "part": self._part("")}
        else:
            yield "response.content_part.added", {"content_index": 0, "part": self._part("")}

    def delta(self, text: str) -> Iterator[Told]:
        if self._as_summary:
            yield "response.reasoning_summary_text.delta", {"summary_index": 0, "delta": text}
        else:
            yield "response.reasoning_text.delta", {"content_index": 0, "delta": text}

    def close(self) -> Iterator[Told]:
        if self._as_summary:
            yield "response.reasoning_summary_text.done", {"summary_index": 0, "text": self.text}
            yield "response.reasoning_summary_part.done", {"summary_index": 0, "part": self._part(self.text)}
        else:
            yield "response.reasoning_text.done", {"content_index": 0, "text": self.text}
            yield "response.content_part.done", {"content_index": 0, "part": self._part(self.text)}


class CallItem(Item):
    """A call of a function. Its text is the arguments' JSON."""

    prefix = "fc"

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self.call_id = f"call_{secrets.token_hex(12)}"
        self._names = {"name": caller.name, **({"namespace": caller.namespace} if caller.namespace else {})}

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self.call_id,
            **self._names,
            "arguments": self.text,
        }

    def delta(self, text: str) -> Iterator[Told]:
        yield "response.function_call_arguments.delta", {"delta": text}

    def close(self) -> Iterator[Told]:
        yield "response.function_call_arguments.done", {"name": self._names["name"], "arguments": self.text}


class CustomCallItem(CallItem):
    """A call of a custom tool: of the arguments' JSON, the caller sees the one text that is in it."""

    prefix = "ctc"

    def __init__(self, caller: Caller) -> None:
        super().__init__(caller)
        self._input = TextArgument()

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "custom_tool_call",
            "status": self.status,
            "call_id": self.call_id,
            **self._names,
            "input": self._input.text,
        }

    def delta(self, text: str) -> Iterator[Told]:
        yield from self._tell(self._input.push(text))

    def close(self) -> Iterator[Told]:
        yield from self._tell(self._input.finish(self.text))
        yield "response.custom_tool_call_input.done", {"input": self._input.text}

    def _tell(self, text: str) -> Iterator[Told]:
        if text:
            yield "response.custom_tool_call_input.delta", {"delta": text}


class TextArgument:
    """The string in {"input": "..."}, as its JSON arrives."""

    _OPENING = re.compile(rf'\s*\{{\s*"{INPUT}"\s*:\s*"')
    # Whole characters only: an escape may arrive in pieces, and half of a surrogate pair is no character.
    _WHOLE = re.compile(
        r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB]..\\u[dD][c-fC-F][0-9a-fA-F]{2})*'
    )

    def __init__(self) -> None:
        self.text = ""
        self._pending = ""
        self._inside = False

    def push(self, text: str) -> str:
        """More of the JSON; returns more of the string."""
        self._pending += text
        if not self._inside:
            opening = self._OPENING.match(self._pending)
            if opening is None:
                return ""
            self._inside, self._pending = True, self._pending[opening.end() :]
        whole = self._WHOLE.match(self._pending)
        assert whole is not None, "the expression matches the empty string"
        self._pending = self._pending[whole.end() :]
        more: str = json.loads(f'"{whole[0]}"', strict=False)
        self.text += more
        return more

    def finish(self, arguments: str) -> str:
        """What is still missing: all of it, where the arguments are not what was declared."""
        if self._inside or not arguments:
            return ""
        try:
            found = json.loads(arguments)
        except ValueError:
            found = None
        self.text = found[INPUT] if isinstance(found, dict) and isinstance(found.get(INPUT), str) else arguments
        return self.text
