"""A conversation with a model in this process: what has been said, and the next answer as it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from longsight.chat.messages import Thinking
from longsight.engine import InvalidRequestError, SamplingParams
from longsight.llm import LLM
from longsight.outputs import StreamOutput


@dataclass(frozen=True)
class Reading:
    """The prompt, of so many tokens, is being read."""

    tokens: int


@dataclass(frozen=True)
class Finished:
    """tokens: of the answer. first_seconds, seconds: to its first token, and from there to its last. context: tokens
    of the conversation, of which there can be `limit`. cut: the answer met its limit of tokens."""

    tokens: int
    first_seconds: float
    seconds: float
    context: int
    limit: int
    cut: bool


News = Reading | StreamOutput | Finished


class Session:
    """messages: the conversation so far as the Chat Completions API has it, without the system message."""

    def __init__(self, llm: LLM, params: SamplingParams, *, system: str = "", thinking: Thinking = "adaptive") -> None:
        self.llm, self.params, self.system, self.thinking = llm, params, system, thinking
        self.messages: list[dict[str, Any]] = []

    def conversation(self) -> list[dict[str, Any]]:
        """The messages, and the system message before them if there is one."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def answers(self, text: str) -> Iterator[News]:
        """Say `text` and read the answer. Both join the conversation when the answer ends, or is left while it comes;
        a message without any answer doesn't. Raises InvalidRequestError if the conversation has become too long."""
        asked = {"role": "user", "content": text}
        messages, limit = [*self.conversation(), asked], self.llm.engine.max_model_len
        prompt_tokens = len(self.llm.render(messages, thinking=self.thinking))
        if (room := limit - prompt_tokens) < 1:
            raise InvalidRequestError(
                f"the conversation has {prompt_tokens:,} tokens with this message, and {limit:,} are possible: "
                "/reset begins another, --max-model-len raises the limit"
            )
        yield Reading(prompt_tokens)
        params = self.params
        if params.max_tokens is not None:
            params = replace(params, max_tokens=min(params.max_tokens, room))
        thought = said = ""
        tokens, started, first, finish = 0, time.perf_counter(), 0.0, None
        try:
            for piece in self.llm.chat_stream(messages, params, thinking=self.thinking):
                first = first or time.perf_counter() - started
                tokens, finish = tokens + len(piece.token_ids), piece.finish_reason
                thought, said = thought + piece.reasoning, said + piece.text
                yield piece
        finally:
            if said or thought:
                reasoning = {"reasoning_content": thought} if thought else {}
                self.messages += [asked, {"role": "assistant", "content": said, **reasoning}]
        seconds = time.perf_counter() - started - first
        yield Finished(tokens, first, seconds, prompt_tokens + tokens, limit, finish == "length")
