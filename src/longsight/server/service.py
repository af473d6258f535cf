"""What the endpoints work with, and how a conversation becomes requests to the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

from longsight.chat.grammar import JsonKind, format_grammar, tool_grammar
from longsight.chat.parser import OutputParser, Start
from longsight.chat.prompt import ChatFormat, Prompt
from longsight.chat.quoting import PromptTokenizer
from longsight.chat.template import ChatTemplate
from longsight.engine import EngineDriver, Grammar, Request, SamplingDefaults, SamplingParams
from longsight.engine.request import requests_for
from longsight.model.markup import NAMESPACE, TURN_MARKERS
from longsight.server.answers import Choice, end_think_id
from longsight.server.auth import Authenticator
from longsight.server.errors import invalid, not_found
from longsight.server.fetch import FetchLimits
from longsight.server.file_store import FileStore
from longsight.server.gate import Gate
from longsight.server.limits import Limits
from longsight.server.responses.store import ResponseStore
from longsight.server.signing import Signer
from longsight.server.turn import Turn
from longsight.server.usage import Meter, UsageRecord

DECENT_ANSWER = 4096  # tokens
PRIORITIES = {"priority": -1, "standard": 0}  # lower goes first


class Tokenizer(PromptTokenizer, Protocol):
    """What the server needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Service:
    """What the endpoints work with.

    chat_template: the checkpoint's own; None for MiniMax-M3's format. aliases: other names of the model.
    chat_max_tokens: the length of a chat answer whose request doesn't say.
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

    def prompt_tokens(self, turn: Turn) -> int:
        """How many tokens the turn's prompt has: what the real request would count."""
        return len(self._prompt(turn).tokens)

    def choices(self, turn: Turn) -> list[Choice]:
        """The answers to a turn, as requests that the engine will take. On a worker thread: rendering and tokenizing a
        megabyte takes a while. Raises ApiError, ChatError, SchemaError, or what the engine refuses."""
        self.check_model(turn.model)
        prompt = self._prompt(turn)
        grammar = self._grammar(turn, prompt.start)
        known = {name: tool.parameters for name, tool in turn.tools_by_name.items()}
        called = known or any(message.calls for message in turn.messages)
        may_call = bool(called) and turn.tool_choice.kind != "none"
        params = replace(
            self._in_markup(turn.params, may_call=may_call),
            max_tokens=self.answer_length(len(prompt.tokens), turn.max_tokens, self.chat_max_tokens),
            grammar=grammar,
        )
        return [
            Choice(
                request,
                i,
                OutputParser(
                    prompt.start,
                    known,
                    calls=may_call,
                    forgiving=grammar is None,
                ),
                turn.stop,
                end_think_id(self.tokenizer.added_tokens),
                None if turn.parallel_calls else 1,
            )
            for i, request in enumerate(self.requests(prompt.tokens, params, turn.service_tier))
        ]

    def _prompt(self, turn: Turn) -> Prompt:
        return self.chat_format.prompt(turn.messages, turn.tools, turn.thinking, turn.template_options)

    def _grammar(self, turn: Turn, start: Start) -> Grammar | None:
        # A template without thinking leaves nothing undecided: the answer begins with the content.
        section: Start = start if self.chat_format.thinks else "content"
        wanted, tools = turn.answer_format, [(tool.name, tool.parameters) for tool in turn.tools]
        parallel, kind = turn.parallel_calls, turn.tool_choice.kind
        if kind == "required":
            return tool_grammar(tools, only=turn.tool_choice.name, parallel=parallel, start=section)
        answer: tuple[JsonKind, str] | None = None
        if wanted and wanted.kind in ("json_object", "json_schema") and isinstance(wanted.value, str):
            answer = wanted.kind, wanted.value
        free = {name for name, tool in turn.tools_by_name.items() if not tool.strict}
        some_strict = len(free) < len(turn.tools_by_name)
        if kind == "auto" and tools and (answer or (some_strict and not wanted)):
            return tool_grammar(tools, parallel=parallel, start=section, optional=True, answer=answer, free=free)
        return format_grammar(*answer, section) if answer else wanted

    def _in_markup(self, params: SamplingParams, *, may_call: bool) -> SamplingParams:
        """No call is begun where none may be made, and the markers of turns end the answer: none belongs to one."""
        added = self.tokenizer.added_tokens
        suppressed = [added[NAMESPACE]] if NAMESPACE in added and not may_call else []
        ends = [added[marker] for marker in TURN_MARKERS if marker in added and not params.ignore_eos]
        return replace(
            params,
            suppress_tokens=(*params.suppress_tokens, *suppressed),
            stop_token_ids=(*params.stop_token_ids, *ends),
        )
