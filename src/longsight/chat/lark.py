"""A grammar under construction: rules and terminals, each kept once, and the Lark text that llguidance reads."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import llguidance

from longsight.chat.errors import SchemaError
from longsight.engine.grammar import MAX_GRAMMAR_CHARS, on_large_stack

MAX_SYMBOLS = 40_000  # in all rules; llguidance expands them to a few times as many and is held to 100,000

MAX_TRIED = 1000  # patterns and ranges, each compiled once by itself


class Symbol(NamedTuple):
    """A literal, terminal or rule in a rule's body. times: "", "?", "+", "*" or "{m,n}". needed: whether the body can
    come to an end without it."""

    text: str
    times: str = ""
    needed: bool = True


def literal(text: str) -> Symbol:
    return Symbol(json.dumps(text))


@lru_cache(maxsize=1024)
def _compiles(body: str) -> bool:
    """Whether a terminal's body or an inlined schema is usable, by a tenth of what all of a grammar may cost."""
    name = "v" if body.startswith("%json") else "V"
    source = llguidance.LLMatcher.grammar_from_lark(f"start: {name}\n{name}: {body}\n")
    limits = llguidance.LLParserLimits(initial_lexer_fuel=100_000, max_grammar_size=10_000)
    return not on_large_stack(lambda: llguidance.LLMatcher.validate_grammar_with_warnings(source, None, limits=limits))[
        0
    ]


class Rules:
    """A set of named rules, each a list of alternatives. A rule without any can never be written."""

    def __init__(self) -> None:
        self._rules: dict[str, list[tuple[Symbol, ...]]] = {}
        self._terminals: dict[str, tuple[str, bool]] = {}
        self._named: dict[str, str] = {}  # terminal or body -> name
        self._about: dict[str, tuple[str, str, str | None]] = {}  # rule -> what to say if it cannot be written
        self._tried: set[str] = set()
        self._size = 0

    def terminal(self, body: str, *, lazy: bool = False) -> Symbol:
        """A lexeme. lazy: it ends where it first can."""
        if body not in self._named:
            name = f"T{len(self._terminals)}"
            self._terminals[name] = body, lazy
            self._named[body] = name.lower() if lazy else name
        return Symbol(self._named[body])

    def usable(self, body: str, pointer: str, tool: str | None) -> bool:
        """Whether llguidance takes this terminal, or schema, within bounds."""
        self._tried.add(body)
        if len(self._tried) > MAX_TRIED:
            raise SchemaError(f"there are more than {MAX_TRIED} different patterns and ranges", pointer, tool)
        return _compiles(body)

    def reserve(self, pointer: str = "", tool: str | None = None, why: str = "no value fits this schema") -> Symbol:
        """A rule whose body is given later, with `define`. pointer, tool, why: what to say if nothing can be it."""
        name = f"r{len(self._rules)}"
        self._rules[name], self._about[name] = [], (why, pointer, tool)
        return Symbol(name)

    def define(self, rule: Symbol, alternatives: Iterable[Iterable[Symbol]]) -> Symbol:
        bodies = list(dict.fromkeys(tuple(body) for body in alternatives))
        self._size += sum(map(len, bodies))
        if self._size > MAX_SYMBOLS:
            _, pointer, tool = self._about[rule.text]
            raise SchemaError(f"the schemas need a grammar of more than {MAX_SYMBOLS} symbols", pointer, tool)
        self._rules[rule.text] = bodies
        return rule

    def rule(self, *bodies: Iterable[Symbol], name: str = "") -> Symbol:
        """A rule that is known in whole; one of the same body is the same rule."""
        alternatives = [tuple(body) for body in bodies]
        key = repr(alternatives)
        if key not in self._named or name:
            self._named[key] = name or f"r{len(self._rules)}"
            self._about.setdefault(self._named[key], ("no text fits", "", None))
            self._rules[self._named[key]] = []
            self.define(Symbol(self._named[key]), alternatives)
        return Symbol(self._named[key])

    def text(self, start: Symbol) -> str:
        """The grammar. What no text can ever complete is left out; SchemaError if nothing is left of `start`."""
        good = self._completable()
        if start.text not in good:
            raise SchemaError(*self._culprit(start.text, good))
        lines = [f"start: {start.text}"]
        reached, queue = {start.text}, deque([start.text])
        used: set[str] = set()
        while queue:
            name = queue.popleft()
            bodies = [_keep(body, good, self._rules) for body in self._rules[name]]
            kept = dict.fromkeys(body for body in bodies if body is not None)
            lines.append(f"{name}: " + " | ".join(" ".join(s.text + s.times for s in body) or '""' for body in kept))
            for symbol in (s for body in kept for s in body):
                used.add(symbol.text)
                if symbol.text in self._rules and symbol.text not in reached:
                    reached.add(symbol.text)
                    queue.append(symbol.text)
        for name, (body, lazy) in self._terminals.items():
            if name in used or name.lower() in used:
                lines += [f"{name}: {body}", *([f"{name.lower()}[lazy]: {name}"] if lazy else [])]
        text = "\n".join(lines) + "\n"
        if len(text) > MAX_GRAMMAR_CHARS:
            raise SchemaError(f"the grammar has {len(text)} characters; at most {MAX_GRAMMAR_CHARS} are read")
        return text

    def _completable(self) -> set[str]:
        """Rules from which some finite text can be derived."""
        bodies = [(name, body) for name, found in self._rules.items() for body in found]
        needs = [{s.text for s in body if s.needed and s.text in self._rules} for _, body in bodies]
        used_in: dict[str, list[int]] = {}
        for i, names in enumerate(needs):
            for name in names:
                used_in.setdefault(name, []).append(i)
        ready = deque(name for (name, _), names in zip(bodies, needs, strict=True) if not names)
        good: set[str] = set()
        while ready:
            done = ready.popleft()
            if done in good:
                continue
            good.add(done)
            for i in used_in.get(done, ()):
                needs[i].discard(done)
                if not needs[i]:
                    ready.append(bodies[i][0])
        return good

    def _culprit(self, name: str, good: set[str]) -> tuple[str, str, str | None]:
        """The innermost rule that stops `name` from ever being complete."""
        seen: set[str] = set()
        about = self._about[name]
        while name not in seen:
            seen.add(name)
            if self._about[name][2] is not None or self._about[name][1]:
                about = self._about[name]
            bad = [
                s.text
                for body in self._rules[name]
                for s in body
                if s.needed and s.text in self._rules and s.text not in good
            ]
            name = next((b for b in bad if b not in seen), name)
        return about


def _keep(
    body: tuple[Symbol, ...], good: set[str], rules: dict[str, list[tuple[Symbol, ...]]]
) -> tuple[Symbol, ...] | None:
    """`body` without what can be left out and never be complete; None if it cannot do without."""
    bad = [s for s in body if s.text in rules and s.text not in good]
    if any(s.needed for s in bad):
        return None
    return tuple(s for s in body if s not in bad)
