"""Questions in plain English about facts that are hidden in real text: one needle or many, in chats and outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longsight.train.facts import Fact, facts
from longsight.train.hiding import PARAGRAPH, hide, joined
from longsight.train.packing import Sequences
from longsight.train.script import Material, Script, pick
from longsight.train.table import Table
from longsight.train.tasks import Context, register
from longsight.train.turns import Turns

SYSTEM = (
    "You are a helpful assistant.",
    "Answer the user's questions.",
    "Be brief.",
    "You answer from the text given.",
)


@dataclass(frozen=True)
class Questions:
    """facts, asked: how many facts a row hides and how many it asks for, both ends included. thinking, plain: shares of
    rows that think before they answer, by quoting the text, and that are no chat but a text to go on with. drill: share
    of chats in which only the facts' values are learned, not how an answer is worded, which small models know long
    before they find the value. roundabout: share of properties that the text may state in other words than an answer
    does. alike: share of rows whose subjects differ in a word only. apart: share of facts told in paragraphs of
    their own."""

    material: Material
    turns: Turns
    facts: tuple[int, int]
    asked: tuple[int, int]
    thinking: float
    plain: float
    drill: float
    roundabout: float
    alike: float
    apart: float

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        count = int(rng.integers(self.facts[0], self.facts[1], endpoint=True))
        alike = bool(self.alike and rng.random() < self.alike)
        hidden = facts(self.material, rng, count, self.roundabout, alike=alike)
        count = min(int(rng.integers(self.asked[0], self.asked[1], endpoint=True)), len(hidden))
        asked = [hidden[i] for i in rng.permutation(len(hidden))[:count]]
        chat = rng.random() >= self.plain
        while True:
            rest = self._dialogue(rng, asked) if chat else self._continued(asked)
            begin = self._begin(rng, chat)
            room = length - len(begin) - len(rest)
            if self._cost(hidden) <= room or len(hidden) == 1:
                break
            hidden = hidden[: max(len(hidden) // 2, 1)]  # too short a row for so many
            asked = [fact for fact in asked if fact in hidden] or hidden[:1]
        statements = [hidden[i].statement for i in rng.permutation(len(hidden))]
        hide(begin, self.material, rng, statements, room, apart=self.apart)
        return joined(begin, rest, length)

    def _begin(self, rng: np.random.Generator, chat: bool) -> Script:
        script = self.turns.begin()
        if chat:
            if rng.random() < 0.5:
                self.turns.say(script, "system", pick(rng, SYSTEM))
            self.turns.open(script, "user")
        return script

    def _cost(self, hidden: list[Fact]) -> int:
        return sum(len(self.material.encode(f"{PARAGRAPH}{fact.statement}{PARAGRAPH}")) for fact in hidden)

    def _dialogue(self, rng: np.random.Generator, asked: list[Fact]) -> Script:
        """The end of the user's first turn, and all that follows."""
        script, thinks, free = Script(), rng.random() < self.thinking, bool(rng.random() < 0.5)
        drilled = rng.random() < self.drill
        for i, fact in enumerate(asked):
            if i:
                self.turns.open(script, "user")
            script.add(self.material.encode(fact.question if i else f"\n\n{fact.question}"))
            self.turns.close(script)
            thought = f"The text says: {fact.statement}"
            only = fact.value if drilled else None
            self.turns.answer(script, fact.answer, thought, asked_to_think=thinks, free=free, only=only)
        return script

    def _continued(self, asked: list[Fact]) -> Script:
        """Sentences whose ends the text told."""
        script = Script()
        for fact in asked:
            head, value, tail = fact.answer.rpartition(fact.value)
            script.add(self.material.encode(f"\n{head.rstrip()}"))
            script.add(self.material.encode(f" {value}{tail}"), learn=True)
        return script


@register("questions")
def questions(table: Table, context: Context) -> Questions:
    material = context.material(table)
    return Questions(
        material,
        Turns(material),
        facts=table.integers("facts", (1, 9), least=1, most=1 << 12),
        asked=table.integers("asked", (1, 4), least=1, most=1 << 12),
        thinking=table.number("thinking", 0.25, most=1.0),
        plain=table.number("plain", 0.1, most=1.0),
        drill=table.number("drill", 0.0, most=1.0),
        roundabout=table.number("roundabout", 0.4, most=1.0),
        alike=table.number("alike", 0.0, most=1.0),
        apart=table.number("apart", 0.0, most=1.0),
    )
