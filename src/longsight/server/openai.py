"""The OpenAI protocol's objects: chat and text completions, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from longsight import __version__
from longsight.chat.answer import Finish
from longsight.chat.events import Arguments, CallStart, Content, Event, Message, Reasoning
from longsight.engine import TokenLogprob
from longsight.server.answers import Piece
from longsight.server.exchange import Exchange, Usage
from longsight.server.logprobs import Spell, for_chat, for_text

FINISH: Mapping[Finish, str] = {"stop": "stop", "stop_string": "stop", "length": "length", "calls": "tool_calls"}
THINK, END_THINK = "<think>\n", "\n</think>\n\n"  # as clients of the protocol know thinking inside the content
REASONING_FORMAT = "MiniMax-response-v1"


def usage(used: Usage, exchange: Exchange | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt_tokens": used.prompt,
        "completion_tokens": used.completion,
        "total_tokens": used.prompt + used.completion,
        "prompt_tokens_details": {"cached_tokens": used.cached},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning},
    }
    if exchange is not None and exchange.cost is not None:
        found["cost"] = exchange.cost.as_json()
    return found


@dataclass
class Answer:
    """One finished choice: what its pieces came to."""

    events: list[Event] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish = "stop"

    def add(self, piece: Piece) -> None:
        self.events += piece.events
        self.logprobs += piece.logprobs
        self.finish = piece.finish or self.finish


@dataclass
class Envelope:
    """What all objects of one response share. spell: token ids to text."""

    model: str
    spell: Spell
    service_tier: str = "default"
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def wrap(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"longsight-{__version__}",
            **fields,
        }

    def chunk(self, choices: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
        return self.wrap(self.chunk_object, choices=choices, **fields)


class TextEnvelope(Envelope):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, Any]) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "text": Message.of(a.events).content,
                "logprobs": for_text(a.logprobs, self.spell) if a.logprobs else None,
                "finish_reason": FINISH[a.finish],
            }
            for i, a in enumerate(answers)
        ]
        return self.wrap(self.whole_object, choices=choices, usage=usage)


@dataclass
class TextStream:
    """One answer's chunks."""

    envelope: TextEnvelope
    index: int
    _offset: int = 0  # characters of the answer before what comes next, by its tokens

    def choices(self, piece: Piece) -> Iterator[dict[str, Any]]:
        text = "".join(e.text for e in piece.events if isinstance(e, Content))
        if not text and piece.finish is None:
            return
        logprobs = for_text(piece.logprobs, self.envelope.spell, self._offset) if piece.logprobs else None
        self._offset += sum(len(self.envelope.spell([p.token])) for p in piece.logprobs)
        finish = None if piece.finish is None else FINISH[piece.finish]
        if text:
            yield {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": None}
            logprobs = None
        if finish is not None:
            yield {"index": self.index, "text": "", "logprobs": logprobs, "finish_reason": finish}


@dataclass
class ChatEnvelope(Envelope):
    """reasoning: apart, in a field of its own, or inline, in the content."""

    reasoning: Literal["split", "inline"] = "inline"

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def wrap(self, kind: str, **fields: Any) -> dict[str, Any]:
        return super().wrap(kind, service_tier=self.service_tier, **fields)

    def whole(self, answers: Sequence[Answer], usage: Mapping[str, Any]) -> dict[str, Any]:
        return self.wrap(self.whole_object, choices=[self._choice(i, a) for i, a in enumerate(answers)], usage=usage)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        told = Message.of(answer.events)
        content = told.content
        message: dict[str, Any] = {"role": "assistant", "refusal": None, "annotations": []}
        if told.reasoning and self.reasoning == "split":
            message["reasoning_content"] = told.reasoning
            message["reasoning_details"] = [self.reasoning_detail(index, told.reasoning)]
        elif told.reasoning:
            content = THINK + told.reasoning + END_THINK + content
        if told.calls:
            message["tool_calls"] = [
                {
                    "index": i,
                    "id": self.call_id(index, i),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for i, call in enumerate(told.calls)
            ]
        message["content"] = None if told.calls and not content else content
        return {
            "index": index,
            "message": message,
            "logprobs": for_chat(answer.logprobs, self.spell) if answer.logprobs else None,
            "finish_reason": FINISH[answer.finish],
        }

    def call_id(self, choice: int, call: int) -> str:
        return f"call_function_{self.id[:12]}{choice or ''}_{call + 1}"

    def reasoning_detail(self, choice: int, text: str) -> dict[str, Any]:
        return {
            "type": "reasoning.text",
            "id": f"reasoning-{self.id}-{choice}",
            "format": REASONING_FORMAT,
            "index": 0,
            "text": text,
        }


@dataclass
class ChatStream:
    """One answer's chunks. A delta holds content, or reasoning, or a part of a call."""

    envelope: ChatEnvelope
    index: int
    _opened: bool = False
    _thinking: bool = False

    def choices(self, piece: Piece) -> Iterator[dict[str, Any]]:
        if piece.progress is not None:
            return
        logprobs = for_chat(piece.logprobs, self.envelope.spell) if piece.logprobs else None
        if not self._opened:
            # With the first token, so that a client's time to first chunk is the true one.
            self._opened = True
            yield self._choice({"role": "assistant", "content": ""})
        for event in piece.events:
            for delta in self._deltas(event):
                yield self._choice(delta, logprobs)
                logprobs = None
        if piece.finish is not None:
            if self._thinking:
                yield self._choice({"content": END_THINK})
            yield self._choice({}, logprobs, FINISH[piece.finish])

    def _choice(
        self, delta: Mapping[str, Any], logprobs: Mapping[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _deltas(self, event: Event) -> Iterator[dict[str, Any]]:
        match event:
            case Reasoning(text) if self.envelope.reasoning == "split":
                yield {
                    "reasoning_content": text,
                    "reasoning_details": [self.envelope.reasoning_detail(self.index, text)],
                }
            case Reasoning(text):
                yield {"content": text if self._thinking else THINK + text}
                self._thinking = True
            case Content(text):
                yield {"content": END_THINK + text if self._thinking else text}
                self._thinking = False
            case CallStart(call, name):
                if self._thinking:
                    yield {"content": END_THINK}
                    self._thinking = False
                function = {"name": name, "arguments": ""}
                opened = {"index": call, "id": self.envelope.call_id(self.index, call), "type": "function"}
                yield {"tool_calls": [{**opened, "function": function}]}
            case Arguments(call, json):
                yield {"tool_calls": [{"index": call, "function": {"arguments": json}}]}


def model_card(model: str, created: int, context_length: int, default_max_tokens: int) -> dict[str, Any]:
    """default_max_tokens: of a chat answer whose request does not say."""
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "longsight",
        "context_length": context_length,
        "default_max_tokens": default_max_tokens,
        "modalities": ["text"],
        "capabilities": {"json_mode": True, "function_calling": True, "thinking": True, "multimodal": False},
    }
