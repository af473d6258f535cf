"""What clients send: checked, and turned into the engine's terms. Unknown fields are ignored.

A known option that would change the answer and isn't supported is refused by name rather than dropped.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from longsight.engine import Grammar, InvalidRequestError, SamplingDefaults, SamplingParams
from longsight.engine.request import to_token_array
from longsight.server.errors import invalid, show

MAX_PROMPTS = 128

# Options of the protocol that are not supported yet: the values that mean "off" pass, others are refused.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "functions": (None, []),
}
FORMATS = ("text", "json_object", "json_schema")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None


class CommonFields(BaseModel):
    """Fields of both endpoints. Types are checked here, ranges by SamplingParams."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: int | None = None
    stop: Any = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    response_format: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    return_progress: bool | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def answer_limit(self) -> int | None:
        """The asked-for length of the answer, or None."""
        return self.max_tokens

    def reported_logprobs(self) -> int | None:
        """How many of the likeliest tokens to report in each place; None for no log-probabilities at all."""
        return None

    def sampling(self, defaults: SamplingDefaults) -> SamplingParams:
        """All but the grammar. Raises ApiError 400 naming the field and its range."""
        limit = self.answer_limit()
        try:
            return SamplingParams(
                n=_or(self.n, 1),
                max_tokens=max(_or(limit, 1), _or(self.min_tokens, 0)) if limit is None else limit,
                temperature=_or(self.temperature, defaults.temperature),
                top_p=_or(self.top_p, defaults.top_p),
                top_k=0 if self.top_k == -1 else _or(self.top_k, defaults.top_k),  # -1: "no limit" in several clients
                min_p=_or(self.min_p, 0.0),
                presence_penalty=_or(self.presence_penalty, 0.0),
                frequency_penalty=_or(self.frequency_penalty, 0.0),
                repetition_penalty=_or(self.repetition_penalty, 1.0),
                logit_bias=_token_biases(self.logit_bias),
                seed=self.seed,
                stop=stop_strings(self.stop),
                stop_token_ids=tuple(self.stop_token_ids or ()),
                min_tokens=_or(self.min_tokens, 0),
                ignore_eos=bool(self.ignore_eos),
                logprobs=self.reported_logprobs(),
            )
        except InvalidRequestError as error:
            raise invalid(str(error), error.param) from error


class ThinkingFields(BaseModel):
    model_config = ConfigDict(strict=True)
    type: str


class ChatFields(CommonFields):
    messages: list[Any]
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    thinking: ThinkingFields | None = None
    reasoning_split: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    service_tier: str | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def reported_logprobs(self) -> int | None:
        if self.logprobs:
            return _or(self.top_logprobs, 0)
        if self.top_logprobs:
            raise invalid(f"top_logprobs is {self.top_logprobs}, which needs logprobs to be true", "top_logprobs")
        return None

    def answer_limit(self) -> int | None:
        given = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return given or None  # several clients say 0 where they mean no limit of their own


class CompletionFields(CommonFields):
    prompt: Any
    logprobs: int | None = None

    def reported_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | array[int]]:
        """One or more prompts, each text or token ids."""
        given = self.prompt
        several = isinstance(given, list) and given and not isinstance(given[0], int)
        prompts = given if several else [given]
        if len(prompts) > MAX_PROMPTS:
            raise invalid(f"prompt holds {len(prompts)} prompts; one request may hold up to {MAX_PROMPTS}", "prompt")
        return [_one_prompt(p, f"prompt.{i}" if several else "prompt") for i, p in enumerate(prompts)]


Model = TypeVar("Model", bound=BaseModel)
Fields = TypeVar("Fields", bound=CommonFields)


def checked(kind: type[Model], body: str) -> Model:
    """A request body of any protocol. Raises ApiError 400 naming the field, its value and what is accepted."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise invalid(
                f"the request body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
            ) from error
        if first["type"] == "missing":
            raise invalid(f"{path} is missing; it is required", path) from error
        subject = path or "the request body"
        raise invalid(f"{subject} is {show(first['input'])}: {first['msg']}", path or None) from error


def parse(kind: type[Fields], body: str) -> Fields:
    """A body of OpenAI's protocol. Raises ApiError 400, for known options too that are not supported."""
    fields = checked(kind, body)
    for name, value in (fields.model_extra or {}).items():
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            accepted = " or ".join(json.dumps(v) for v in UNSUPPORTED[name] if v is not None)
            raise invalid(
                f"{name} is {show(value)}, which this server does not support; leave it out or send {accepted}",
                name,
                "unsupported_parameter",
            )
    return fields


def _one_prompt(prompt: Any, path: str) -> str | array[int]:
    if isinstance(prompt, str):
        return prompt
    # A boolean is an int to Python, but no token id.
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        try:
            return to_token_array(prompt)
        except InvalidRequestError as error:
            raise invalid(f"{path}: {error}", path) from error
    raise invalid(f"{path} is {show(prompt)}; it must be a string, a list of token ids, or a list of those", path)


def stop_strings(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
        raise invalid(f"stop is {show(stop)}; it must be a string or a list of strings", "stop")
    return tuple(strings)


def _token_biases(biases: Mapping[str, float] | None) -> dict[int, float] | None:
    if not biases:
        return None
    for token in biases:
        if not (token.isascii() and token.isdigit()):
            raise invalid(f"logit_bias names {show(token)}; its keys must be token ids, as text", "logit_bias")
    return {int(token): bias for token, bias in biases.items()}


def answer_format(response_format: Mapping[str, Any] | None) -> Grammar | None:
    """What the answer must look like. The schema's keys keep their order: answers are written in it."""
    if response_format is None:
        return None
    kind, at = response_format.get("type"), "response_format"
    if kind not in FORMATS:
        raise invalid(f"{at}.type is {show(kind)}; it must be one of {', '.join(FORMATS)}", f"{at}.type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar("json_object")
    given = response_format.get("json_schema")
    schema = given.get("schema") if isinstance(given, dict) else None
    if not isinstance(schema, dict):
        path = f"{at}.json_schema" + (".schema" if isinstance(given, dict) else "")
        raise invalid(f"{path} is {show(schema if isinstance(given, dict) else given)}; it must be an object", path)
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))


Value = TypeVar("Value")


def _or(value: Value | None, default: Value) -> Value:
    return default if value is None else value
