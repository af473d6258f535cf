"""Variables set to each other, hidden in real text: each has the number at the beginning of its chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longsight.model.markup import DOCUMENT
from longsight.train.facts import coined
from longsight.train.hiding import Begun, PlainText
from longsight.train.packing import Sequences
from longsight.train.table import Table
from longsight.train.tasks import Context, register

# {x}: a variable, {s}: what it is set to. Evaluation has these forms, with names of its own: no other teaches what a
# name stands for that another was set to.
STATED = "The value of {x} is {s}."
SOURCE = "the value of {x}"
ASKED = "Written as a number, the value of {x} is"


@dataclass(frozen=True)
class Tracking:
    """chains: how many a row has; links: how many variables each has; both ends included, and fewer in short rows."""

    plain: PlainText
    chains: tuple[int, int]
    links: tuple[int, int]

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        """Every variable is asked for, in a random order."""
        sizes = rng.integers(*self.links, int(rng.integers(*self.chains, endpoint=True)), endpoint=True).tolist()
        while True:
            hidden, asked = self._written(rng, sizes)
            if self.plain.fits(hidden, asked, length) or sizes == [1]:
                return self.plain.row(rng, hidden, asked, length)
            sizes = sizes[:-1] if len(sizes) > 1 else [sizes[0] - 1]

    def _written(self, rng: np.random.Generator, sizes: list[int]) -> tuple[list[str], list[Begun]]:
        names: dict[str, None] = {}
        while len(names) < sum(sizes):
            names[coined(rng).upper()] = None
        unused, asked = iter(names), []
        # Chains lie in one another, but a variable is set before another is set to it.
        waiting: list[list[str]] = []
        for size in sizes:
            number, chain = str(rng.integers(10 ** int(rng.integers(2, 7)))), []
            source = number
            for _ in range(size):
                name = next(unused)
                chain.append(STATED.format(x=name, s=source))
                source = SOURCE.format(x=name)
                asked.append(Begun(ASKED.format(x=name), f" {number}."))
            waiting.append(chain)
        turns = [i for i, size in enumerate(sizes) for _ in range(size)]
        hidden = [waiting[turns[i]].pop(0) for i in rng.permutation(len(turns))]
        return hidden, [asked[i] for i in rng.permutation(len(asked))]


@register("tracking")
def tracking(table: Table, context: Context) -> Tracking:
    material = context.material(table)
    return Tracking(
        PlainText(material, material.special(DOCUMENT)),
        chains=table.integers("chains", (1, 3), least=1, most=64),
        links=table.integers("links", (1, 4), least=1, most=64),
    )
