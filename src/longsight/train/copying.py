"""Copying: pieces of text, real or of random tokens, come again somewhere later in a row; what repeats is learned.

The plainest use of long context, learned within minutes, and what answering from a text is made of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longsight.model.markup import DOCUMENT
from longsight.train.packing import Sequences
from longsight.train.script import Material, Script
from longsight.train.table import Table
from longsight.train.tasks import Context, register

CUE = 2  # tokens of a repeated piece after which it can be known


@dataclass(frozen=True)
class Copying:
    """sizes: tokens of a piece, both ends included. random: share of pieces made of random tokens. again: chance that
    the next piece is one that came before. vocabulary: random tokens are below it."""

    material: Material
    start: int
    vocabulary: int
    sizes: tuple[int, int]
    random: float
    again: float

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        script = Script().add([self.start])
        filler = self.material.filler(rng, length)
        pieces: list[list[int]] = []
        while len(script) < length:
            if pieces and rng.random() < self.again:
                piece = pieces[int(rng.integers(len(pieces)))]
                script.add(piece[:CUE]).add(piece[CUE:], learn=True)
            else:
                size = int(rng.integers(self.sizes[0], self.sizes[1], endpoint=True))
                coined = rng.random() < self.random
                piece = rng.integers(0, self.vocabulary, size).tolist() if coined else self.material.filler(rng, size)
                pieces.append(piece)
                script.add(piece)
            gap = int(rng.choice((0, 0, 1, 3, 8)))
            script.add(filler[len(script) : len(script) + gap])
        del script.ids[length:], script.learned[length:]
        return script.row()


@register("copying")
def copying(table: Table, context: Context) -> Copying:
    material = context.material(table)
    return Copying(
        material,
        start=material.special(DOCUMENT)[0],
        vocabulary=table.integer("vocabulary", context.vocab_size, least=2, most=context.vocab_size),
        sizes=table.integers("sizes", (4, 14), least=CUE + 1, most=1 << 10),
        random=table.number("random", 0.6, most=1.0),
        again=table.number("again", 0.6, most=1.0),
    )
