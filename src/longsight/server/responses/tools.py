"""The tools of a request: those that the caller runs are declared to the model, others are passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from longsight.chat.messages import Tool
from longsight.chat.openai_messages import required
from longsight.chat.request import ToolChoice
from longsight.server.errors import invalid, show

INPUT = "input"  # the one argument by which a custom tool's free text is declared to the model
CHOICES = (
    'none, auto, required, {"type": "function", "name": ...}, {"type": "custom", "name": ...} or '
    '{"type": "allowed_tools", "mode": ..., "tools": [...]}'
)
_DECLARED = ("name", "description", "parameters")


@dataclass(frozen=True)
class Caller:
    """How the caller knows a tool. kind: a function has arguments, a custom tool takes one text."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None = None


def model_name(name: Any, namespace: Any = None) -> Any:
    """How the model knows a tool: inside a namespace, by both names."""
    return f"{namespace}.{name}" if isinstance(namespace, str) and namespace and isinstance(name, str) else name


@dataclass
class Toolbox:
    """tools: as declared to the model. warnings: what was passed over."""

    tools: list[Tool] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _callers: dict[str, Caller] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Sequence[Any] | None) -> Toolbox:
        """Raises ApiError 400, or ChatError, for a function that cannot be declared."""
        box = cls()
        for i, tool in enumerate(given or ()):
            box._add(tool, f"tools.{i}")
        return box

    def caller(self, name: str) -> Caller:
        """What the caller calls the tool that the model calls `name`."""
        return self._callers.get(name) or Caller("function", name)

    def _add(self, given: Any, path: str, namespace: str | None = None) -> None:
        if not isinstance(given, dict):
            raise invalid(f"{path} is {show(given)}; it must be an object with a type", path)
        kind = given.get("type")
        if kind == "function":
            function = {k: given[k] for k in given if k in _DECLARED}
            self._declare(function, "function", path, namespace, given.get("strict"))
        elif kind == "custom":
            self._declare(_custom(given), "custom", path, namespace)
        elif kind == "namespace" and namespace is None and isinstance(given.get("tools"), list):
            for i, inner in enumerate(given["tools"]):
                self._add(inner, f"{path}.tools.{i}", str(given.get("name") or ""))
        else:
            self.warnings.append(f"{path} of type {show(kind)} is not run by this server")

    def _declare(
        self,
        function: Mapping[str, Any],
        kind: Literal["function", "custom"],
        path: str,
        namespace: str | None,
        strict: Any = None,
    ) -> None:
        name = function.get("name")
        tool = Tool.declare({**function, "name": model_name(name, namespace)}, path, strict)
        self.tools.append(tool)
        self._callers[tool.name] = Caller(kind, str(name), namespace or None)

    def choose(self, given: Any) -> ToolChoice:
        """What tool_choice asks for. Of allowed tools, the others are taken out. Raises ApiError 400 for a choice that
        is none, and for one of a tool that is not declared."""
        if isinstance(given, dict) and given.get("type") == "allowed_tools":
            return self._allow(given)
        if given in (None, "auto"):
            return ToolChoice()
        if given == "none":
            return ToolChoice("none")
        if given == "required":
            return required(None, self.tools, "tool_choice", any_tool=True)
        kind = given.get("type") if isinstance(given, dict) else None
        if kind in ("function", "custom"):
            return required(
                model_name(given.get("name"), given.get("namespace")), self.tools, "tool_choice", any_tool=False
            )
        if not isinstance(kind, str):
            raise invalid(f"tool_choice is {show(given)}; it must be {CHOICES}", "tool_choice")
        self.warnings.append(f"tool_choice of type {show(kind)} is not run by this server")
        return ToolChoice()

    def _allow(self, given: Mapping[str, Any]) -> ToolChoice:
        mode, listed = given.get("mode", "auto"), given.get("tools")
        if mode not in ("auto", "required"):
            raise invalid(f"tool_choice.mode is {show(mode)}; it must be auto or required", "tool_choice.mode")
        if not isinstance(listed, list) or not all(isinstance(t, dict) for t in listed):
            raise invalid(f"tool_choice.tools is {show(listed)}; it must be a list of tools", "tool_choice.tools")
        allowed = {model_name(t.get("name"), t.get("namespace")) for t in listed if isinstance(t.get("name"), str)}
        self.tools = [tool for tool in self.tools if tool.name in allowed]
        return required(None, self.tools, "tool_choice", any_tool=True) if mode == "required" else ToolChoice()


def _custom(given: Mapping[str, Any]) -> dict[str, Any]:
    """A custom tool as a function of one text; the grammar of that text, if it has one, is told in words."""
    description = given.get("description") if isinstance(given.get("description"), str) else ""
    form = given.get("format")
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        description = (
            f"{description}\n\nThe {INPUT} follows this {form.get('syntax', '')} grammar:\n{form['definition']}"
        )
    return {
        "name": given.get("name"),
        "description": description,
        "parameters": {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]},
    }
