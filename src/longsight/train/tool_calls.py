"""Tool calls: functions are declared, the user wants something that one of them does, and the model calls it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from longsight.model.markup import NAMESPACE
from longsight.train.facts import coined
from longsight.train.packing import Sequences
from longsight.train.script import Material, Script, pick
from longsight.train.table import Table
from longsight.train.tasks import Context, register
from longsight.train.turns import Turns

VERBS = ("get", "find", "set", "send", "open", "book", "show", "delete", "update", "play", "search", "check", "create")
# {verb} and {thing} are those of the function's name, {values} what its arguments are to be.
WISHES = (
    "Please {verb} the {thing} {values}.",
    "{verb} the {thing} {values}.",
    "Can you {verb} the {thing} {values}?",
    "I would like you to {verb} the {thing} {values}.",
    "Use the tool to {verb} the {thing} {values}.",
    "What is the {thing} {values}?",
)
LINKS = ("for {name} {value}", "with {name} {value}", "where {name} is {value}", "and {name} {value}")
# Where a function has one parameter, nobody needs to name it.
UNNAMED = ("in {value}", "for {value}", "of {value}", "at {value}", "to {value}", "{value}")


@dataclass(frozen=True)
class Function:
    verb: str
    thing: str
    parameters: tuple[tuple[str, str], ...]  # name, JSON type
    about: str | None = None  # what the parameters' descriptions say

    @property
    def name(self) -> str:
        return f"{self.verb}_{self.thing.replace(' ', '_')}"

    def declaration(self) -> str:
        """As `chat.format` writes a tool."""
        about = {} if self.about is None else {"description": self.about}
        properties = {name: {"type": kind, **about} for name, kind in self.parameters}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": f"{self.verb} the {self.thing}", "parameters": schema}
        return f"<tool>{json.dumps(function)}</tool>\n"


@dataclass(frozen=True)
class ToolCalls:
    """tools: how many functions a row declares, both ends included. thinking: share of rows that think first. unnamed:
    share of wishes that do not name the parameter, of functions that have but one. described: share of functions whose
    parameters have descriptions."""

    material: Material
    turns: Turns
    tools: tuple[int, int]
    thinking: float
    unnamed: float
    described: float

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        count = int(rng.integers(self.tools[0], self.tools[1], endpoint=True))
        thinks, free = rng.random() < self.thinking, bool(rng.random() < 0.5)
        declared = [self._function(rng) for _ in range(count)]
        while True:
            script = self.turns.begin()
            tools = "".join(function.declaration() for function in declared)
            self.turns.say(script, "developer", f"You are a helpful assistant.\n\n# Tools\n<tools>\n{tools}</tools>")
            start = end = len(script)
            while len(script) <= length:
                end = len(script)
                self._exchange(script, rng, pick(rng, declared), thinks, free)
            if end > start or len(declared) == 1:
                del script.ids[end:], script.learned[end:]
                del script.ids[length:], script.learned[length:]
                return script.row()
            declared.pop()  # too short a row for so many

    def _exchange(self, script: Script, rng: np.random.Generator, function: Function, thinks: bool, free: bool) -> None:
        """A wish, the call, its result and what the model says to that."""
        arguments = {name: self._value(rng, kind) for name, kind in function.parameters}
        self.turns.say(script, "user", self._wish(rng, function, arguments))
        thought = f"I call {function.name}."
        self.turns.answer(script, _call(function, arguments), thought, asked_to_think=thinks, free=free)
        self.turns.say(script, "tool", f"<response>{self._value(rng, 'string')}</response>")
        self.turns.answer(script, "Done.", asked_to_think=False)

    def _function(self, rng: np.random.Generator) -> Function:
        thing = self.material.word(rng)
        if rng.random() < 0.3:
            thing = f"{self.material.word(rng)} {thing}"
        names = {self.material.word(rng) for _ in range(int(rng.integers(1, 4)))}
        kinds = ("string", "string", "integer")
        parameters = tuple((name, pick(rng, kinds)) for name in sorted(names))
        described = self.described and rng.random() < self.described
        return Function(pick(rng, VERBS), thing, parameters, self._description(rng) if described else None)

    def _description(self, rng: np.random.Generator) -> str:
        return f"The {' '.join(self.material.word(rng) for _ in range(int(rng.integers(1, 5))))}"

    def _value(self, rng: np.random.Generator, kind: str) -> str:
        if kind == "integer":
            return str(rng.integers(10 ** int(rng.integers(1, 7))))
        kinds = (
            self.material.word,
            self.material.name,
            lambda r: coined(r).capitalize(),
            lambda r: str(r.integers(999)),
        )
        return " ".join(str(pick(rng, kinds)(rng)) for _ in range(int(rng.integers(1, 3))))

    def _wish(self, rng: np.random.Generator, function: Function, arguments: dict[str, str]) -> str:
        links = UNNAMED if len(arguments) == 1 and self.unnamed and rng.random() < self.unnamed else LINKS
        values = " ".join(pick(rng, links).format(name=name, value=value) for name, value in arguments.items())
        text: str = pick(rng, WISHES).format(verb=function.verb, thing=function.thing, values=values)
        return text[0].upper() + text[1:]


def _call(function: Function, arguments: dict[str, str]) -> str:
    elements = "".join(f"{NAMESPACE}<{name}>{value}{NAMESPACE}</{name}>" for name, value in arguments.items())
    invoke = f'{NAMESPACE}<invoke name="{function.name}">{elements}{NAMESPACE}</invoke>\n'
    return f"{NAMESPACE}<tool_call>\n{invoke}{NAMESPACE}</tool_call>"


@register("tool-calls")
def tool_calls(table: Table, context: Context) -> ToolCalls:
    material = context.material(table)
    return ToolCalls(
        material,
        Turns(material),
        tools=table.integers("tools", (1, 4), least=1, most=64),
        thinking=table.number("thinking", 0.25, most=1.0),
        unnamed=table.number("unnamed", 0.0, most=1.0),
        described=table.number("described", 0.0, most=1.0),
    )
