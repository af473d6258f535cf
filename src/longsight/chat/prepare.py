"""From a request to continue a conversation to what the engine runs, and to what reads the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from longsight.chat.answer import AnswerReader
from longsight.chat.grammar import JsonKind, format_grammar, tool_grammar
from longsight.chat.parser import OutputParser, Start
from longsight.chat.prompt import ChatFormat
from longsight.chat.request import ChatRequest
from longsight.engine import Grammar, SamplingParams
from longsight.model.markup import END_THINK, NAMESPACE, TURN_MARKERS

Reader = TypeVar("Reader", bound=AnswerReader)


@dataclass(frozen=True)
class PreparedChat:
    """prompt: token ids. params: the request's own, held to what its tools and its form of answer ask for; max_tokens
    is still as the request has it."""

    request: ChatRequest
    prompt: Sequence[int]
    params: SamplingParams
    start: Start
    may_call: bool
    end_think_id: int | None

    def reader(self, kind: type[Reader], **fields: Any) -> Reader:
        """What reads one answer. fields: those that `kind` has beside an AnswerReader's."""
        request = self.request
        schemas = {name: tool.parameters for name, tool in request.tools_by_name.items()}
        forgiving = self.params.grammar is None
        return kind(
            parser=OutputParser(self.start, schemas, calls=self.may_call, forgiving=forgiving),
            stop=request.stop,
            end_think_id=self.end_think_id,
            max_calls=None if request.parallel_calls else 1,
            ignore_end=self.params.ignore_eos,
            **fields,
        )


def prepare(request: ChatRequest, chat_format: ChatFormat, added_tokens: Mapping[str, int]) -> PreparedChat:
    """added_tokens: literals that are tokens of their own. Rendering and tokenizing a megabyte takes a while. Raises
    ChatError or SchemaError."""
    prompt = chat_format.prompt(request.messages, request.tools, request.thinking, request.template_options)
    called = request.tools or any(message.calls for message in request.messages)
    may_call = bool(called) and request.tool_choice.kind != "none"
    # A template without thinking leaves nothing undecided: the answer begins with the content.
    section: Start = prompt.start if chat_format.thinks else "content"
    params = replace(_within_turn(request.params, added_tokens, may_call=may_call), grammar=_grammar(request, section))
    return PreparedChat(request, prompt.tokens, params, prompt.start, may_call, added_tokens.get(END_THINK))


def _within_turn(params: SamplingParams, added_tokens: Mapping[str, int], *, may_call: bool) -> SamplingParams:
    """No call is begun where none may be made, and the markers of turns end the answer: none belongs to one."""
    suppressed = [added_tokens[NAMESPACE]] if NAMESPACE in added_tokens and not may_call else []
    ends = [added_tokens[marker] for marker in TURN_MARKERS if marker in added_tokens and not params.ignore_eos]
    return replace(
        params,
        suppress_tokens=(*params.suppress_tokens, *suppressed),
        stop_token_ids=(*params.stop_token_ids, *ends),
    )


def _grammar(request: ChatRequest, section: Start) -> Grammar | None:
    wanted, tools = request.answer_format, [(tool.name, tool.parameters) for tool in request.tools]
    parallel, kind = request.parallel_calls, request.tool_choice.kind
    if kind == "required":
        return tool_grammar(tools, only=request.tool_choice.name, parallel=parallel, start=section)
    answer: tuple[JsonKind, str] | None = None
    if wanted and wanted.kind in ("json_object", "json_schema") and isinstance(wanted.value, str):
        answer = wanted.kind, wanted.value
    free = {name for name, tool in request.tools_by_name.items() if not tool.strict}
    some_strict = len(free) < len(request.tools_by_name)
    if kind == "auto" and tools and (answer or (some_strict and not wanted)):
        return tool_grammar(tools, parallel=parallel, start=section, optional=True, answer=answer, free=free)
    return format_grammar(*answer, section) if answer else wanted
