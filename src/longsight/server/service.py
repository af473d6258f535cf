"""What the endpoints work with, and how a conversation becomes requests to the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

from longsight.chat.prepare import prepare
from longsight.chat.prompt import ChatFormat, Prompt
from longsight.chat.quoting import PromptTokenizer
from longsight.chat.request import ChatRequest
from longsight.chat.template import ChatTemplate
from longsight.engine import EngineDriver, Request, SamplingDefaults, SamplingParams
from longsight.engine.defaults import CHAT_MAX_REPETITION
from longsight.engine.request import requests_for
from longsight.server.answers import Choice
from longsight.server.auth import Authenticator
from longsight.server.errors import invalid, not_found
from longsight.server.fetch import FetchLimits
from longsight.server.file_store import FileStore
from longsight.server.gate import Gate
from longsight.server.limits import Limits
from longsight.server.responses.store import ResponseStore
from longsight.server.signing import Signer
from longsight.server.usage import Meter, UsageRecord

DECENT_ANSWER = 4096  # tokens
PRIORITIES = {"priority": -1, "standard": 0}  # lower goes first


class Tokenizer(PromptTokenizer, Protocol):
    """What the server needs of a tokenizer."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]: ...


@dataclass(frozen=True)
class Service:
    """What the endpoints work with.

    chat_template: the checkpoint's own; None for MiniMax-M3's format. aliases: other names of the model.
    chat_max_tokens: the length of a chat answer whose request doesn't say (SamplingDefaults.chat_tokens).
    body_limit: bytes. keep_alive: seconds of silence after which a stream says that it lives. reasoning_format: where
    chat completions put the thinking if the request doesn't say, apart or inline in the content. limits: what a request
    may take. authenticator: checks API keys, None: nobody is asked for one. gate: who may go in; meter: keeps the
    records of what was used; observers: told of each request once it is over. files: uploads; their routes answer 404
    without. fetch_limits: for what requests name by URL. signer: of what clients keep for us.
    responses: those that later requests may go on from. built_in: which built-in model this is, None for any other.
    """

    driver: EngineDriver
    tokenizer: Tokenizer
    model_id: str
    chat_template: ChatTemplate | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    chat_max_tokens: int = 4096
    body_limit: int = 64 * 2**20
    keep_alive: float = 10.0
    created: int = field(default_factory=lambda: int(time.time()))
    aliases: tuple[str, ...] = ()
    reasoning_format: Literal["split", "inline"] = "inline"
    limits: Limits = field(default_factory=Limits)
    authenticator: Authenticator | None = None
    gate: Gate | None = None
    meter: Meter | None = None
    observers: list[Callable[[UsageRecord], None]] = field(default_factory=list)
    files: FileStore | None = None
    fetch_limits: FetchLimits = field(default_factory=FetchLimits)
    signer: Signer = field(default_factory=Signer)
    responses: ResponseStore = field(default_factory=ResponseStore)
    built_in: str | None = None

    @cached_property
    def chat_format(self) -> ChatFormat:
        return ChatFormat(self.tokenizer, self.chat_template)

    def check_model(self, model: str) -> None:
        if model != self.model_id and model not in self.aliases:
            message = f"the model {model!r} does not exist; this server has {self.model_id!r}"
            raise not_found(message, "model_not_found", "model")

    def answer_length(self, prompt_tokens: int, asked: int | None, default: int) -> int:
        """Tokens of an answer: as many as asked for, else the default or what room there is.

        Nobody who names no length is moved above the guaranteed context by the default's, as long as that leaves a
        decent answer.
        """
        most = self.limits.max_output_tokens
        if asked is not None:
            # What does not fit the context at all, the engine refuses with all the numbers.
            if most < asked <= self.driver.engine.max_model_len:
                raise invalid(f"max_tokens is {asked}; an answer can have {most} tokens here", "max_tokens")
            return asked
        below_floor = self.limits.guaranteed_context - prompt_tokens
        if below_floor >= DECENT_ANSWER:
            default = min(default, below_floor)
        return max(min(default, most, self.driver.engine.max_model_len - prompt_tokens), 1)

    def requests(self, tokens: Sequence[int], params: SamplingParams, tier: str = "standard") -> list[Request]:
        """One request per answer to a prompt, checked and its grammar compiled: on a worker thread, as parsing is."""
        requests = requests_for(tokens, params, priority=PRIORITIES.get(tier, 0))
        for request in requests:
            self.driver.engine.check(request)
        return requests

    def prompt_tokens(self, turn: ChatRequest) -> int:
        """How many tokens the turn's prompt has: what the real request would count."""
        return len(self.prompt(turn).tokens)

    def choices(self, turn: ChatRequest) -> list[Choice]:
        """The answers to a turn, as requests that the engine will take. On a worker thread: rendering and tokenizing a
        megabyte takes a while. Raises ApiError, ChatError, SchemaError, or what the engine refuses."""
        self.check_model(turn.model)
        prepared = prepare(turn, self.chat_format, self.tokenizer.added_tokens)
        length = self.answer_length(len(prepared.prompt), turn.max_tokens, self.chat_max_tokens)
        params = replace(prepared.params, max_tokens=length)
        if turn.max_tokens is None:
            params = replace(params, max_repetition=CHAT_MAX_REPETITION)
        requests = self.requests(prepared.prompt, params, turn.service_tier)
        return [prepared.reader(Choice, request=request, index=i) for i, request in enumerate(requests)]

    def prompt(self, turn: ChatRequest, *, add_generation_prompt: bool = True) -> Prompt:
        """What the model reads of a request. On a worker thread. Raises ChatError for what cannot be rendered."""
        return self.chat_format.prompt(
            turn.messages,
            turn.tools,
            turn.thinking,
            turn.template_options,
            add_generation_prompt=add_generation_prompt,
        )
