"""What the Python API returns: answers, whole and in pieces."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longsight.chat.answer import AnswerReader, Finish
from longsight.chat.events import Arguments, CallStart, Content, Event, Message, Reasoning
from longsight.chat.messages import ToolCall
from longsight.engine import Request, TokenLogprob, Update

FinishReason = Literal["stop", "length", "tool_calls"]
_REASONS: Mapping[Finish, FinishReason] = {
    "stop": "stop",
    "stop_string": "stop",
    "length": "length",
    "calls": "tool_calls",
}


@dataclass
class CompletionOutput:
    """One answer.

    text: what a reader would see. reasoning: what the model thought before it, in a chat. tool_calls: complete calls,
    each with an id, a name and arguments. raw_text: all that the model wrote, markup included; of a plain completion
    the same as text. token_ids: of raw_text. logprobs: one per token, if asked for. finish_reason: stop, length (the
    limit of tokens) or tool_calls.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    raw_text: str = ""

    def to_message(self) -> dict[str, Any]:
        """The answer as a message to continue the conversation with."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in self.tool_calls
            ]
        return message


@dataclass
class RequestOutput:
    """A prompt and its answers. num_cached_tokens: prompt tokens that came from the prefix cache."""

    prompt: str | None
    prompt_token_ids: Sequence[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the answer's tool call number `index`. id and name come with its first piece; the arguments of all pieces
    joined are JSON text, complete once another call begins or the answer ends with finish_reason tool_calls."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """A piece of an answer: what has become final since the last piece. Fields as in CompletionOutput."""

    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    raw_text: str = ""


class Generation:
    """One answer under way: a request of the engine, what reads its updates, and the output that they come to."""

    def __init__(self, request: Request, reader: AnswerReader, index: int) -> None:
        self.request, self.output = request, CompletionOutput(index)
        self._reader = reader
        self._events: list[Event] = []
        self._id = uuid.uuid4().hex[:12]

    @property
    def finished(self) -> bool:
        return self.output.finish_reason is not None

    def take(self, update: Update) -> StreamOutput | None:
        """The piece that an update brings, or None if it brings nothing. Raises the error that ended the request."""
        if update.error is not None:
            raise update.error
        events = self._reader.read(update)
        self._events += events
        output = self.output
        output.raw_text += update.text
        output.token_ids += update.tokens
        if update.logprobs:
            output.logprobs = [*(output.logprobs or []), *update.logprobs]
        if self._reader.finish is not None:
            self._finish(_REASONS[self._reader.finish])
        if not update.tokens and not self.finished:
            return None
        return StreamOutput(
            output.index,
            "".join(e.text for e in events if isinstance(e, Content)),
            update.tokens,
            update.logprobs,
            output.finish_reason,
            "".join(e.text for e in events if isinstance(e, Reasoning)),
            [d for e in events if (d := self._call_delta(e)) is not None],
            update.text,
        )

    def _finish(self, reason: FinishReason) -> None:
        message = Message.of(self._events)
        output = self.output
        output.finish_reason, output.text, output.reasoning = reason, message.content, message.reasoning
        output.tool_calls = [
            ToolCall(self._call_id(i), call.name, json.loads(call.arguments)) for i, call in enumerate(message.calls)
        ]

    def _call_delta(self, event: Event) -> ToolCallDelta | None:
        match event:
            case CallStart(index, name):
                return ToolCallDelta(index, self._call_id(index), name)
            case Arguments(index, text):
                return ToolCallDelta(index, arguments=text)
        return None

    def _call_id(self, index: int) -> str:
        return f"call_{self._id}_{index}"
