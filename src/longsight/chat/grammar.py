"""Grammars that hold an answer to calls of tools, in MiniMax-M3's own markup, or to JSON. Thinking stays free.

Source of the markup: the chat template published with the checkpoint; parser.py reads it.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Container, Sequence
from typing import Any, Literal

import llguidance

from longsight.chat import texts
from longsight.chat.errors import SchemaError, pointer_to
from longsight.chat.lark import Rules, Symbol, literal
from longsight.chat.parser import Start
from longsight.chat.values import ArgumentRules
from longsight.engine.errors import InvalidRequestError
from longsight.engine.grammar import JSON_FORM, LIMITS, MAX_GRAMMAR_CHARS, check_schema, on_large_stack
from longsight.engine.params import Grammar
from longsight.model.markup import END_THINK, THINK

JsonKind = Literal["json_object", "json_schema"]
_NAME = re.compile(r"[^<>\"\x00-\x1f]{1,256}")
_SHARED = ("$defs", "definitions")
MAX_SEARCH = 4 << 20  # characters of schema that are compiled to find out where one fails


def tool_grammar(
    tools: Sequence[tuple[str, Any]],
    *,
    only: str | None = None,
    parallel: bool,
    start: Start,
    optional: bool = False,
    answer: tuple[JsonKind, str] | None = None,
    free: Container[str] = (),
) -> Grammar:
    """An answer that is one block of calls after any thinking.

    tools: name and JSON schema of the arguments, in the caller's order; of several of one name the first counts.
    only: the one tool that may be called. parallel: one call or more, else exactly one. start: as for OutputParser.
    optional: text may come before the block, or in its place. answer: and then it is such JSON, as for format_grammar,
    without a block. free: tools whose calls are not held to their schema. Raises SchemaError.
    """
    chosen = {name: schema for name, schema in reversed(tools) if only is None or name == only}
    if not chosen:
        known = ", ".join(repr(name) for name, _ in tools) or "none"
        raise SchemaError(f"there is no such tool to call; there are: {known:.400}", tool=only or "")
    rules = Rules()
    ns, anything = rules.terminal(texts.NS), Symbol(_element(rules).text, "*")
    calls: list[list[Symbol]] = []
    for name, schema in reversed(chosen.items()):
        if not _NAME.fullmatch(name) or not texts.writable(name):
            raise SchemaError("a tool's name has 1 to 256 characters, none of them \" < > or a control", tool=name)
        opening = [literal(f'<invoke name="{name}">'), ns]
        if name in free:
            call = rules.rule([*opening, anything, literal("</invoke>\n"), ns])
        else:
            _check_size(schema, name)
            call = rules.reserve("", name)
            ending = [literal("</invoke>\n"), ns]
            bodies = ArgumentRules(rules, name, schema).bodies()
            rules.define(call, [[*opening, *body, *ending] for body in bodies])
        calls.append([call])
    call = rules.rule(*calls)
    block = [literal("<tool_call>\n"), ns, Symbol(call.text, "+" if parallel else ""), literal("</tool_call>")]
    if optional and answer:
        answers = [[ns, *block], [_json(*answer)]]
    elif optional:
        # One terminal for text and the marker that ends it: until the marker comes, both answers are still open.
        text = rules.terminal(texts.CONTENT)
        answers = [[rules.terminal(texts.CONTENT_TO_CALL), *block], [Symbol(text.text, "?")]]
    else:
        answers = [[ns, *block]]
    return _after_thinking(rules, start, answers)


def _element(rules: Rules) -> Symbol:
    """An argument of any name and value. What it is closed with may be another's name: the parser sees to that."""
    tag = rules.terminal(texts.TAG)
    element = rules.reserve()
    opening, closing = [literal("<"), tag, literal(">")], [literal("</"), tag, literal(">"), rules.terminal(texts.NS)]
    inner = [rules.terminal(texts.FREE, lazy=True), Symbol(element.text, "*", needed=False)]
    return rules.define(element, [[*opening, *inner, *closing]])


def format_grammar(kind: JsonKind, schema_text: str, start: Start) -> Grammar:
    """An answer that is JSON, any object or of a schema (JSON text), after any thinking. Raises SchemaError with the
    place of a keyword that cannot be held to."""
    return _after_thinking(Rules(), start, [[_json(kind, schema_text)]])


def _json(kind: JsonKind, schema_text: str) -> Symbol:
    schema: Any = {"type": "object"}
    if kind == "json_schema":
        try:
            schema = json.loads(schema_text)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"it is not JSON: {error}") from error
        if not isinstance(schema, dict):
            raise SchemaError(f"it must be an object, got {schema!r:.80}")
        if len(schema_text) > MAX_GRAMMAR_CHARS:
            raise SchemaError(f"it has {len(schema_text)} characters; at most {MAX_GRAMMAR_CHARS} are read")
        _check_size(schema)
        _check_supported(schema)
    return Symbol("%json " + json.dumps({**schema, "x-guidance": JSON_FORM}))


def _check_size(schema: object, tool: str | None = None) -> None:
    try:
        check_schema(schema)
    except InvalidRequestError as error:
        raise SchemaError(str(error), tool=tool) from error


def _after_thinking(rules: Rules, start: Start, answers: Sequence[Sequence[Symbol]]) -> Grammar:
    whole = [[*before, *answer] for before in _thinking(rules, start) for answer in answers]
    return Grammar("lark", rules.text(rules.rule(*whole)))


def _thinking(rules: Rules, start: Start) -> list[list[Symbol]]:
    """What may come before the answer proper."""
    if start == "content":
        return [[]]
    reasoning = rules.terminal(texts.REASONING, lazy=True)
    return [[reasoning]] if start == "reasoning" else [[], [literal(END_THINK)], [literal(THINK), reasoning]]


def _check_supported(schema: dict[str, Any]) -> None:
    """SchemaError with the innermost place that fails as the whole does: llguidance says what is wrong, not where."""
    search = _Search(schema)
    problem = search.problem(schema)
    if problem:
        raise SchemaError(problem, search.place(problem))


class _Search:
    """Looks for the part of a schema that llguidance refuses, within a bounded amount of work."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._shared = {key: root[key] for key in _SHARED if key in root}
        self._left = MAX_SEARCH

    def problem(self, schema: dict[str, Any]) -> str:
        """What there is against a schema, or nothing."""
        text = json.dumps({**self._shared, **schema, "x-guidance": JSON_FORM})
        self._left -= len(text) + 1000
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text)
        error, messages = on_large_stack(
            lambda: llguidance.LLMatcher.validate_grammar_with_warnings(grammar, None, limits=LIMITS)
        )
        return " ".join(str(messages[0]).split())[:300] if error else ""

    def place(self, problem: str) -> str:
        """Pointer to the innermost schema that has this problem by itself."""
        found, pointer = "", ""
        waiting: deque[tuple[str, object]] = deque(self._parts("", self._root))
        while waiting and self._left > 0:
            pointer, part = waiting.popleft()
            if isinstance(part, dict) and self.problem(part) == problem:
                found = pointer
                waiting.clear()
            waiting.extend(self._parts(pointer, part))
        return found

    def _parts(self, pointer: str, part: object) -> list[tuple[str, object]]:
        """What is directly inside; shared definitions first, as others fail by referring to them."""
        steps = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        found = [(pointer_to(pointer, step), inner) for step, inner in steps if isinstance(inner, dict | list)]
        return sorted(found, key=lambda entry: entry[0] not in ("/$defs", "/definitions"))
