"""A Messages request as it is sent, and the turn that it asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from pydantic import BaseModel, ConfigDict

from longsight.chat.messages import Thinking
from longsight.chat.request import ChatRequest
from longsight.engine import Grammar, InvalidRequestError, SamplingDefaults, SamplingParams
from longsight.server.anthropic.messages import conversation
from longsight.server.anthropic.tools import tool_choice, tools
from longsight.server.errors import invalid, show

MODES = get_args(Thinking)
TIERS: Mapping[str, str] = {"priority": "priority"}  # the rest, "auto" and "standard_only", is standard


class ThinkingFields(BaseModel):
    """budget_tokens is a hint that nothing enforces: max_tokens ends the answer. `display` and the like are ignored."""

    model_config = ConfigDict(strict=True)
    type: str
    budget_tokens: int | None = None


class MessagesFields(BaseModel):
    """Types are checked here, ranges by SamplingParams. Fields that are not named are ignored."""

    model_config = ConfigDict(strict=True)
    model: str
    messages: list[Any]
    system: str | list[Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    thinking: ThinkingFields | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    service_tier: str | None = None
    output_config: Any = None
    output_format: Any = None

    @property
    def format_path(self) -> str:
        """Where the form of the answer is asked for."""
        return "output_config.format" if self.output_format is None else "output_format"

    def turn(self, defaults: SamplingDefaults) -> ChatRequest:
        """Raises ApiError or ChatError naming what is wrong."""
        params = self._sampling(defaults)
        declared = tools(self.tools)
        choice, parallel = tool_choice(self.tool_choice, declared)
        return ChatRequest(
            model=self.model,
            messages=conversation(self.system, self.messages),
            params=replace(params, stop=()),
            max_tokens=self.max_tokens,
            tools=declared,
            tool_choice=choice,
            parallel_calls=parallel,
            thinking=self._thinking(),
            stop=params.stop,
            answer_format=self._answer_format(),
            service_tier=TIERS.get(self.service_tier or "", "standard"),
        )

    def _sampling(self, defaults: SamplingDefaults) -> SamplingParams:
        top_k = defaults.top_k if self.top_k is None else self.top_k
        try:
            return SamplingParams(
                max_tokens=1 if self.max_tokens is None else self.max_tokens,
                temperature=defaults.temperature if self.temperature is None else self.temperature,
                top_p=defaults.top_p if self.top_p is None else self.top_p,
                top_k=0 if top_k == -1 else top_k,  # -1: "no limit" in several clients
                stop=tuple(self.stop_sequences or ()),
            )
        except InvalidRequestError as error:
            if error.param == "stop":
                message = "stop_sequences" + str(error).removeprefix("stop")
                raise invalid(message, "stop_sequences") from error
            raise invalid(str(error), error.param) from error

    def _thinking(self) -> Thinking:
        """Off unless asked for, as clients of this protocol expect."""
        kind = "disabled" if self.thinking is None else self.thinking.type
        if kind not in MODES:
            raise invalid(f"thinking.type is {show(kind)}; it must be one of {', '.join(MODES)}", "thinking.type")
        return cast(Thinking, kind)

    def _answer_format(self) -> Grammar | None:
        """The schema of the answer, from either of the places where clients put it; its keys keep their order."""
        path, given = self.format_path, self.output_format
        if given is None and isinstance(self.output_config, dict):
            given = self.output_config.get("format")
        if given is None:
            return None
        if not isinstance(given, dict) or given.get("type") != "json_schema":
            kind = given.get("type") if isinstance(given, dict) else given
            raise invalid(f"{path}.type is {show(kind)}; it must be json_schema", f"{path}.type")
        if not isinstance(given.get("schema"), dict):
            raise invalid(f"{path}.schema is {show(given.get('schema'))}; it must be an object", f"{path}.schema")
        return Grammar("json_schema", json.dumps(given["schema"], ensure_ascii=False))
