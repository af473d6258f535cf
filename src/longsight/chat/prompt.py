"""From a conversation to the tokens that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longsight.chat import format as own_format
from longsight.chat.messages import ChatMessage, Thinking, Tool, ToolCall, settle
from longsight.chat.parser import Start
from longsight.chat.quoting import PromptTokenizer, Quoting
from longsight.chat.template import ChatTemplate
from longsight.model import markup

MARKERS = (
    markup.NAMESPACE,
    markup.THINK,
    markup.END_THINK,
    markup.TURN,
    markup.END_OF_TURN,
    markup.DOCUMENT,
)


RESERVED = ("messages", "tools", "add_generation_prompt")  # what a template is given by us alone


@dataclass(frozen=True)
class Prompt:
    """start: the section that the prompt leaves open, for the parser of the answer."""

    tokens: Sequence[int]
    start: Start


class ChatFormat:
    """How a checkpoint's conversations are written. template: its own; None for MiniMax-M3's format (format.py).

    thinks: whether thinking modes mean anything to it.
    """

    def __init__(self, tokenizer: PromptTokenizer, template: ChatTemplate | None = None) -> None:
        self._template = template
        self._quoting = Quoting(tokenizer, MARKERS)
        self.thinks = template is None or template.thinks

    def prompt(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        thinking: Thinking = "adaptive",
        options: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """options: further names for the template. add_generation_prompt: end where the answer begins. Raises
        ChatError, with the path, for what cannot be rendered."""
        quoted = [self._quoted(m) for m in settle(messages)]
        declared = [Tool(t.name, t.parameters, self._quoting.quote_all(t.function)) for t in tools]
        if self._template is None:
            text = own_format.render(quoted, declared, thinking, open=add_generation_prompt)
        else:
            given = {name: value for name, value in (options or {}).items() if name not in RESERVED}
            if declared:
                given["tools"] = [{"type": "function", "function": t.function} for t in declared]
            given |= {"thinking_mode": thinking, "add_generation_prompt": add_generation_prompt}
            text = self._template.render([_plain(m) for m in quoted], **given)
        start: Start = "undecided"
        if text.endswith(markup.THINK):
            start = "reasoning"
        elif text.endswith(markup.END_THINK):
            start = "content"
        return Prompt(self._quoting.encode(text), start)

    def _quoted(self, message: ChatMessage) -> ChatMessage:
        quote = self._quoting.quote
        return ChatMessage(
            message.role,
            quote(message.content),
            None if message.reasoning is None else quote(message.reasoning),
            tuple(ToolCall(c.id, quote(c.name), self._quoting.quote_all(c.arguments)) for c in message.calls),
            message.call_id,
            message.path,
            message.extra,
        )


def _plain(message: ChatMessage) -> dict[str, Any]:
    """As templates know messages."""
    known: dict[str, Any] = {**message.extra, "role": message.role, "content": message.content}
    if message.reasoning is not None:
        known["reasoning_content"] = message.reasoning
    elif message.role == "assistant":
        known["reasoning_content"] = ""
    if message.calls:
        known["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.calls
        ]
    if message.call_id is not None:
        known["tool_call_id"] = message.call_id
    return known
