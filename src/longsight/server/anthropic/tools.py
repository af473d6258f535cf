"""Declarations of tools, and which of them must be called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longsight.chat.messages import Tool
from longsight.chat.openai_messages import required
from longsight.chat.request import ToolChoice
from longsight.server.errors import invalid, show

CHOICES = ("auto", "any", "tool", "none")


def tools(given: Sequence[Any] | None) -> list[Tool]:
    """Each schema's keys in the caller's order. Tools that a service would run itself (web search and its like have a
    type and no schema) are left out: there is nobody here to run them."""
    found: list[Tool] = []
    for i, tool in enumerate(given or ()):
        path = f"tools.{i}"
        if not isinstance(tool, dict):
            raise invalid(f"{path} is {show(tool)}; it must be an object with name and input_schema", path)
        if "input_schema" not in tool and tool.get("type") not in (None, "custom"):
            continue
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            at = f"{path}.input_schema"
            raise invalid(f"{at} is {show(schema)}; it must be a JSON schema, an object", at)
        function = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
        if function["description"] is None:
            del function["description"]
        found.append(Tool.declare(function, path, tool.get("strict")))
    return found


def tool_choice(given: Any, tools: Sequence[Tool]) -> tuple[ToolChoice, bool]:
    """The choice, and whether a turn may hold several calls. Raises ApiError 400 for a tool that is not declared."""
    if given is None:
        return ToolChoice(), True
    kind = given.get("type") if isinstance(given, dict) else None
    parallel = not (isinstance(given, dict) and given.get("disable_parallel_tool_use") is True)
    match kind:
        case "auto":
            return ToolChoice(), parallel
        case "none":
            return ToolChoice("none"), parallel
        case "any" | "tool":
            return required(given.get("name"), tools, "tool_choice", any_tool=kind == "any"), parallel
    raise invalid(
        f"tool_choice.type is {show(kind)}; it must be one of {', '.join(CHOICES)}",
        "tool_choice.type" if isinstance(given, dict) else "tool_choice",
    )
