"""MiniMax-M3's chat format, for checkpoints that bring no template of their own.

The layout is that of the published template (roles, turns, tool markup, thinking modes); the instructions in words are
ours, so a model trained on the published ones should be run with its own template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longsight.chat.messages import ChatMessage, Thinking, Tool, ToolCall
from longsight.model.markup import DOCUMENT, END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN

ROOT = "You are MiniMax-M3, a large language model, run by Longsight."
IDENTITY = "You are a helpful assistant."
PREFILL: Mapping[Thinking, str] = {"adaptive": "", "enabled": THINK, "disabled": END_THINK}
_MODES: Mapping[Thinking, str] = {
    "adaptive": "adaptive. Think where a decision is hard, has several steps, or rests on the results of tools.",
    "enabled": "enabled. Think before every answer, after the results of tools too.",
    "disabled": "disabled. Answer without thinking.",
}

_THINKING = (
    "\n\n<thinking_instructions>\n"
    f"Reasoning before an answer stands between {THINK} and {END_THINK}. Three modes tell whether there is any: "
    f"enabled, always; disabled, never, and the answer begins right after {END_THINK}; adaptive, as you see fit.\n"
    "Current thinking mode: {mode}\n</thinking_instructions>"
)


def render(
    messages: Sequence[ChatMessage], tools: Sequence[Tool] = (), thinking: Thinking = "adaptive", *, open: bool = True
) -> str:
    """The text of a settled conversation (messages.settle). open: ends where the assistant's answer begins.

    Turns are only ever appended: the text of a conversation is a beginning of the text of any that goes on from it,
    with the same tools, system message and mode.
    """
    root, developer, at = ROOT, IDENTITY, 0
    if messages and messages[0].role == "root":
        root, at = messages[0].content or ROOT, 1
    if len(messages) > at and messages[at].role == "system":
        developer, at = messages[at].content or IDENTITY, at + 1
    pieces = [
        DOCUMENT + _turn("system", root + _THINKING.format(mode=_MODES[thinking])),
        _turn("developer", developer + (_declare(tools) if tools else "")),
    ]
    turns = messages[at:]
    for i, message in enumerate(turns):
        if message.role == "assistant":
            pieces.append(_turn("ai", _answer(message)))
        elif message.role == "tool":
            if not i or turns[i - 1].role != "tool":
                pieces.append(TURN + "tool")
            pieces.append(f"\n<response>{message.content}</response>")
            if i + 1 == len(turns) or turns[i + 1].role != "tool":
                pieces.append(END_OF_TURN + "\n")
        else:
            pieces.append(_turn("user", message.content))
    if open:
        pieces.append(f"{TURN}ai\n{PREFILL[thinking]}")
    return "".join(pieces)


def _turn(role: str, text: str) -> str:
    return f"{TURN}{role}\n{text}{END_OF_TURN}\n"


def _answer(message: ChatMessage) -> str:
    thought = f"{THINK}{message.reasoning}{END_THINK}" if message.reasoning else END_THINK
    return thought + message.content + (_block(message.calls) if message.calls else "")


def _block(calls: Sequence[ToolCall]) -> str:
    return (
        f"{NAMESPACE}<tool_call>\n" + "".join(_invoke(c.name, c.arguments) for c in calls) + f"{NAMESPACE}</tool_call>"
    )


def _invoke(name: str, arguments: Mapping[str, Any]) -> str:
    return f'{NAMESPACE}<invoke name="{name}">{_elements(arguments)}{NAMESPACE}</invoke>\n'


def _elements(values: Mapping[str, Any]) -> str:
    """An element for each key; null is told by leaving it out."""
    return "".join(
        f"{NAMESPACE}<{key}>{_element(value)}{NAMESPACE}</{key}>" for key, value in values.items() if value is not None
    )


def _element(value: Any) -> str:
    if isinstance(value, Mapping):
        return _elements(value)
    if isinstance(value, list | tuple):
        return "".join(f"{NAMESPACE}<item>{_element(v)}{NAMESPACE}</item>" for v in value)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _declare(tools: Sequence[Tool]) -> str:
    declared = "".join(f"<tool>{json.dumps(t.function, ensure_ascii=False)}</tool>\n" for t in tools)
    example = _block(
        [
            ToolCall("", "first-tool", {"a": "value", "b": [{"key": "value"}]}),
            ToolCall("", "second-tool", {"a": "value"}),
        ]
    )
    return (
        "\n\n# Tools\nThese tools can be called, each with arguments of its JSON schema:\n\n"
        f"<tools>\n{declared}</tools>\n\n"
        f"All calls of a turn stand in one {NAMESPACE}<tool_call> block; objects and lists become elements inside "
        f"elements. For example:\n\n{example}"
    )
