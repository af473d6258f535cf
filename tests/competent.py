"""A stand-in for a model that does as it is asked: calls a tool where one fits, writes JSON, thinks when told to.

Conformance suites look at what a server makes of an answer, and the answer must be there to look at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_model import ScriptedModel
from live_server import LiveServer, live_server
from longsight.engine import SamplingDefaults
from longsight.model.markup import END_OF_TURN, END_THINK, NAMESPACE, THINK, TURN

NS = NAMESPACE
# In docs/clients.md; the embedded model finds the answer in it (test_embedded.py).
DOCUMENTED_QUESTION = "The library opens at nine. The museum opens at ten. When does the museum open?"


def competent(prompt: str) -> str:
    """The assistant's turn that follows a prompt in MiniMax-M3's format."""
    turns = [turn.split(END_OF_TURN)[0] for turn in prompt.split(TURN)[1:-1]]
    asked = next((turn.removeprefix("user\n") for turn in reversed(turns) if turn.startswith("user\n")), "")
    off = "Current thinking mode: disabled" in prompt
    forced = "Current thinking mode: enabled" in prompt
    thought = f"{THINK}It is a matter of care.{END_THINK}" if forced or ("reasoning" in asked and not off) else ""
    if turns[-1].startswith("tool\n"):
        results = re.findall(r"<response>(.*?)</response>", turns[-1], re.DOTALL)
        return f"{thought}The tool says: {' and '.join(results)}."
    for tool in re.findall(r"<tool>(\{.*\})</tool>\n", prompt):
        function = json.loads(tool)
        if fits(function, asked):
            return thought + call(function, asked)
    if "json" in asked.lower() or "status" in asked:
        return thought + json.dumps({"status": "ok"})
    return f"{thought}You asked for this: {asked}"


def fits(function: Mapping[str, Any], asked: str) -> bool:
    """Whether the question has a word of the tool's name, or speaks of tools."""
    return any(word in asked.lower() for word in (*re.split(r"[^a-z]+", function["name"].lower()), "tool") if word)


def call(function: Mapping[str, Any], asked: str) -> str:
    properties: Mapping[str, Any] = (function.get("parameters") or {}).get("properties", {})
    arguments = "".join(f"{NS}<{k}>{value(schema, asked)}{NS}</{k}>" for k, schema in properties.items())
    return f'{NS}<tool_call>\n{NS}<invoke name="{function["name"]}">{arguments}{NS}</invoke>\n{NS}</tool_call>'


def value(schema: Mapping[str, Any], asked: str) -> str:
    """An argument: what the question names last in capitals, or its number."""
    if schema.get("enum"):
        return str(schema["enum"][0])
    if schema.get("type") in ("integer", "number"):
        return (re.findall(r"\d+", asked) or ["1"])[0]
    if schema.get("type") == "boolean":
        return "true"
    return (re.findall(r"[A-Z]\w+(?: [A-Z]\w+)*", asked) or ["nothing"])[-1]


def documented(section: str, language: str, url: str) -> str:
    """The example of a section of docs/clients.md, for the server at `url`."""
    text = (Path(__file__).parents[1] / "docs" / "clients.md").read_text().split(f"## {section}\n")[1]
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    assert "http://127.0.0.1:8000" in found[1]
    return found[1].replace("http://127.0.0.1:8000", url)


@contextmanager
def competent_server(**options: Any) -> Iterator[LiveServer]:
    model = ScriptedModel(competent, context=16_384)
    defaults = SamplingDefaults(temperature=0)
    options = {
        "template": None,
        "pages": 2048,
        "chunk_tokens": 1024,
        "defaults": defaults,
        "aliases": ("longsight",),
        **options,
    }
    with live_server(model, **options) as server:
        yield server
