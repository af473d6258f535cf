"""Several values of one thing, hidden in real text one by one, to be named together in the order of the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longsight.model.markup import DOCUMENT
from longsight.train.facts import PROPERTIES, subject, value
from longsight.train.hiding import Begun, PlainText, listed
from longsight.train.packing import Sequences
from longsight.train.script import Material, pick
from longsight.train.table import Table
from longsight.train.tasks import Context, register

# {a}: a property, {k}: who or what, {v}: a value, {n}: how many. Evaluation has the first form of each, about things of
# its own.
STATED = ("One of the {a}s for {k} is {v}.", "Another {a} for {k} is {v}.", "Among the {a}s for {k} is {v}.")
ASKED = ("The {n} {a}s for {k} are", "All {a}s for {k}:")


@dataclass(frozen=True)
class Lists:
    """things: how many a row tells of; values: how many each has; both ends included, and fewer in short rows."""

    plain: PlainText
    things: tuple[int, int]
    values: tuple[int, int]

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        things = int(rng.integers(*self.things, endpoint=True))
        most = self.values[1]
        while True:
            hidden, asked = self._written(rng, things, most)
            if self.plain.fits(hidden, asked, length) or things == most == 1:
                return self.plain.row(rng, hidden, asked, length)
            things, most = (things - 1, most) if things > 1 else (1, most - 1)

    def _written(self, rng: np.random.Generator, things: int, most: int) -> tuple[list[str], list[Begun]]:
        """At most `most` values each: their statements in a random order, and a question about each thing."""
        material, asked = self.plain.material, []
        told: list[tuple[int, str, str]] = []  # thing, value, statement
        names: list[tuple[str, str]] = []
        # Often one property for all, so that only the thing tells them apart.
        shared = str(pick(rng, PROPERTIES)) if rng.random() < 0.6 else None
        for thing in range(things):
            names.append((shared or str(pick(rng, PROPERTIES)), subject(material, rng)))
            count = int(rng.integers(min(self.values[0], most), most, endpoint=True))
            values = list(dict.fromkeys(value(material, rng) for _ in range(count)))
            words = dict(zip("ak", names[thing], strict=True))
            told += [(thing, v, str(pick(rng, STATED)).format(v=v, **words)) for v in values]
        told = [told[i] for i in rng.permutation(len(told))]
        for thing in rng.permutation(things):
            values = [v for owner, v, _ in told if owner == thing]
            words = dict(zip("ak", names[thing], strict=True))
            begin = str(pick(rng, ASKED)).format(n=len(values), **words)
            asked.append(Begun(begin, f" {listed(values)}."))
        return [statement for _, _, statement in told], asked


@register("lists")
def lists(table: Table, context: Context) -> Lists:
    material: Material = context.material(table)
    return Lists(
        PlainText(material, material.special(DOCUMENT)),
        things=table.integers("things", (1, 3), least=1, most=64),
        values=table.integers("values", (2, 5), least=1, most=64),
    )
