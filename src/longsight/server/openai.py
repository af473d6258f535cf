"""The OpenAI protocol's objects: chat and text completions, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from longsight.engine import TokenLogprob
from longsight.server.logprobs import Spell, for_chat, for_text


@dataclass(frozen=True)
class Answer:
    """One finished choice."""

    text: str
    finish_reason: str
    logprobs: Sequence[TokenLogprob] = ()


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass
class Dialect(ABC):
    """What both endpoints share: the envelope of a response and of its chunks. spell: token ids to text."""

    model: str
    spell: Spell
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def whole(self, answers: Sequence[Answer], usage: dict[str, int]) -> dict[str, Any]:
        choices = [
            {**self.choice(a), "index": i, "logprobs": self.logprobs(a.logprobs, 0) if a.logprobs else None}
            for i, a in enumerate(answers)
        ]
        return {**self._envelope(self.whole_object), "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        return {**self._envelope(self.chunk_object), "choices": choices, **fields}

    def text_choice(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": index, **self.delta(text), "logprobs": logprobs, "finish_reason": None}

    def last_choice(self, index: int, finish_reason: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": index, **self.delta(None), "logprobs": logprobs, "finish_reason": finish_reason}

    def first_choice(self, index: int) -> dict[str, Any] | None:
        """What a stream opens a choice with, if anything."""
        return None

    @abstractmethod
    def choice(self, answer: Answer) -> dict[str, Any]:
        """A finished choice, less its index."""

    @abstractmethod
    def logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """Log-probabilities of a piece of a choice; offset: characters of the answer before it."""

    @abstractmethod
    def delta(self, text: str | None) -> dict[str, Any]:
        """The text part of a chunk's choice; None in the last one."""

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


class ChatDialect(Dialect):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"message": message, "finish_reason": answer.finish_reason}

    def logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        return for_chat(entries, self.spell)

    def first_choice(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}


class TextDialect(Dialect):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def choice(self, answer: Answer) -> dict[str, Any]:
        return {"text": answer.text, "finish_reason": answer.finish_reason}

    def logprobs(self, entries: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        return for_text(entries, self.spell, offset)

    def delta(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}


def model_card(model: str, created: int, context_length: int) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "longsight",
        "context_length": context_length,
    }
