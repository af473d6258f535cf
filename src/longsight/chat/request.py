"""What every chat protocol's request becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longsight.chat.messages import ChatMessage, Thinking, Tool
from longsight.engine import Grammar, SamplingParams


@dataclass(frozen=True)
class ToolChoice:
    """kind: auto, as the model likes; none, no call; required, at least one, of the tool `name` if that is given."""

    kind: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True)
class ChatRequest:
    """One request to continue a conversation.

    params: how tokens are chosen; its max_tokens counts reasoning too, its `stop` is empty, because `stop` here ends
    the content only. max_tokens None: the default of the model. answer_format: what the content must look
    like. template_options: further names for the checkpoint's template.
    """

    messages: Sequence[ChatMessage]
    params: SamplingParams
    model: str = ""
    max_tokens: int | None = None
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_calls: bool = True
    thinking: Thinking = "adaptive"
    stop: tuple[str, ...] = ()
    answer_format: Grammar | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    service_tier: str = "standard"

    @property
    def tools_by_name(self) -> Mapping[str, Tool]:
        """Of several of one name the first counts, as in grammars."""
        return {tool.name: tool for tool in reversed(self.tools)}
