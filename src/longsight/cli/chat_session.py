"""A conversation with a model in this process: what has been said, and the next answer as it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from longsight.chat.errors import ChatError
from longsight.chat.events import Content, Event, Reasoning
from longsight.chat.messages import ChatMessage, Thinking
from longsight.chat.parser import OutputParser
from longsight.chat.prompt import ChatFormat, Prompt
from longsight.chat.template import ChatTemplate
from longsight.engine import InvalidRequestError, SamplingParams
from longsight.llm import LLM
from longsight.model.built_in import model_dir
from longsight.model.markup import NAMESPACE, TURN_MARKERS


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


News = Reading | Reasoning | Content | Finished


class Session:
    """messages: the conversation so far, without the system message."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        model: str | None = None,
        system: str = "",
        thinking: Thinking = "adaptive",
    ) -> None:
        self.llm, self.params, self.system, self.thinking = llm, params, system, thinking
        self.messages: list[ChatMessage] = []
        self._format = ChatFormat(llm.tokenizer, ChatTemplate.from_checkpoint(model_dir(model)))

    @property
    def thinks(self) -> bool:
        """Whether thinking modes mean anything to the model's template."""
        return self._format.thinks

    def answers(self, text: str) -> Iterator[News]:
        """Say `text` and read the answer. Both join the conversation when the answer ends, or is left while it comes;
        a message without any answer doesn't. Raises InvalidRequestError if the conversation has become too long."""
        asked = ChatMessage("user", text)
        prompt = self._prompt([*self.messages, asked])
        limit = self.llm.engine.max_model_len
        if (room := limit - len(prompt.tokens)) < 1:
            raise InvalidRequestError(
                f"the conversation has {len(prompt.tokens):,} tokens with this message, and {limit:,} are possible: "
                "/reset begins another, --max-model-len raises the limit"
            )
        yield Reading(len(prompt.tokens))
        parser = OutputParser(prompt.start, calls=False)
        thought, said = "", ""
        tokens, started, first, finish = 0, time.perf_counter(), 0.0, None
        try:
            for piece in self.llm.stream(prompt.tokens, self._params(room)):
                first = first or time.perf_counter() - started
                tokens, finish = tokens + len(piece.token_ids), piece.finish_reason
                events: Sequence[Event] = parser.push(piece.text)
                for event in [*events, *(parser.finish() if finish else [])]:
                    if isinstance(event, Reasoning):
                        thought += event.text
                        yield event
                    elif isinstance(event, Content):
                        said += event.text
                        yield event
        finally:
            if said or thought:
                self.messages += [asked, ChatMessage("assistant", said, thought or None)]
        seconds = time.perf_counter() - started - first
        yield Finished(tokens, first, seconds, len(prompt.tokens) + tokens, limit, finish == "length")

    def _prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        head = [ChatMessage("system", self.system)] if self.system else []
        try:
            return self._format.prompt([*head, *messages], thinking=self.thinking)
        except ChatError as error:
            raise InvalidRequestError(str(error), "messages") from error

    def _params(self, room: int) -> SamplingParams:
        """No tool can be called here, and the markers of turns end the answer: none belongs to one."""
        added = self.llm.tokenizer.added_tokens
        return replace(
            self.params,
            max_tokens=min(self.params.max_tokens, room),
            suppress_tokens=(added[NAMESPACE],) if NAMESPACE in added else (),
            stop_token_ids=tuple(added[marker] for marker in TURN_MARKERS if marker in added),
        )
