"""What a request may hold. Unknown fields are ignored; known ones that would change the answer are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from longsight.chat.messages import Thinking
from longsight.engine import Grammar, SamplingDefaults, SamplingParams
from longsight.server.errors import invalid, show
from longsight.server.schema import FORMATS, CommonFields, answer_format, parse

# The values that ask for nothing; any other needs what this server does not have.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
}
ENCRYPTED = "reasoning.encrypted_content"


class ReasoningFields(BaseModel):
    """effort: none turns thinking off. summary: any but none has thinking told as a summary, not as content."""

    model_config = ConfigDict(strict=True, extra="allow")
    effort: str | None = None
    summary: str | None = None


class TextFields(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    format: dict[str, Any] | None = None


class ResponsesFields(CommonFields):
    input: Any = None
    instructions: str | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningFields | None = None
    text: TextFields | None = None
    max_output_tokens: int | None = None
    include: list[Any] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def answer_limit(self) -> int | None:
        return self.max_tokens if self.max_output_tokens is None else self.max_output_tokens

    @property
    def thinking(self) -> Thinking:
        return "disabled" if self.reasoning is not None and self.reasoning.effort == "none" else "adaptive"

    @property
    def summaries(self) -> bool:
        return self.reasoning is not None and self.reasoning.summary not in (None, "none")

    @property
    def encrypted(self) -> bool:
        return ENCRYPTED in (self.include or ())

    def sampling(self, defaults: SamplingDefaults) -> SamplingParams:
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise invalid(
                f"max_output_tokens is {self.max_output_tokens}; it must be an integer of at least 1",
                "max_output_tokens",
            )
        if self.n not in (None, 1):
            raise invalid(f"n is {self.n}; a response holds one answer", "n")
        return super().sampling(defaults)

    def answer_format(self) -> Grammar | None:
        """What the answer must look like: text.format is chat's response_format without its inner object."""
        given = None if self.text is None else self.text.format
        if given is None:
            return None
        kind = given.get("type")
        if kind not in FORMATS:
            raise invalid(
                f"text.format.type is {show(kind)}; it must be one of {', '.join(FORMATS)}", "text.format.type"
            )
        if kind == "json_schema" and not isinstance(given.get("schema"), dict):
            raise invalid(
                f"text.format.schema is {show(given.get('schema'))}; it must be an object", "text.format.schema"
            )
        return answer_format({"type": kind, "json_schema": given})


def parse_fields(body: str) -> ResponsesFields:
    """Raises ApiError 400 naming the field, its value and what is accepted."""
    fields = parse(ResponsesFields, body)
    for name, value in (fields.model_extra or {}).items():
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            raise invalid(
                f"{name} is {show(value)}, which this server does not support; leave it out",
                name,
                "unsupported_parameter",
            )
    return fields
