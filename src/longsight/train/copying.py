"""Copying: pieces of text, real or of random tokens, come again somewhere later in a row; what repeats is learned.

The plainest use of long context, learned within minutes, and what answering from a text is made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from longsight.model.markup import DOCUMENT
from longsight.train.packing import Sequences
from longsight.train.script import Material, Script
from longsight.train.table import Table
from longsight.train.tasks import Context, register

Array = np.ndarray[Any, np.dtype[np.int64]]
CUE = 2  # tokens of a repeated piece after which it can be known
NARROW_CUE = 4  # as long as it takes where pairs of tokens come again by chance


@dataclass(frozen=True)
class Copying:
    """sizes: tokens of a piece, both ends included. random: share of pieces made of random tokens. again: chance that
    the next piece is one that came before. vocabulary: random tokens are below it. narrow: share of rows whose random
    tokens are of `alphabet` different ones only, so that a match of one or two tokens misleads."""

    material: Material
    start: int
    vocabulary: int
    sizes: tuple[int, int]
    random: float
    again: float
    narrow: float
    alphabet: tuple[int, int]

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        if self.narrow and rng.random() < self.narrow:
            different = int(rng.integers(self.alphabet[0], self.alphabet[1], endpoint=True))
            return self._row(rng, length, rng.integers(0, self.vocabulary, different), NARROW_CUE)
        return self._row(rng, length, None, CUE)

    def _row(self, rng: np.random.Generator, length: int, alphabet: Array | None, cue: int) -> Sequences:
        """alphabet: int64 [A], the row's random tokens; None: all of the vocabulary. cue: what repeats is learned from
        its token `cue` on, if the `cue` before it were always followed by it so far."""
        script = Script().add([self.start])
        filler = self.material.filler(rng, length)
        pieces: list[list[int]] = []
        while len(script) < length:
            if pieces and rng.random() < self.again:
                piece = pieces[int(rng.integers(len(pieces)))]
                script.add(piece[:cue]).add(piece[cue:], learn=True)
            else:
                size = int(rng.integers(self.sizes[0], self.sizes[1], endpoint=True))
                coined = alphabet is not None or rng.random() < self.random
                piece = self._random(rng, size, alphabet) if coined else self.material.filler(rng, size)
                pieces.append(piece)
                script.add(piece)
            gap = int(rng.choice((0, 0, 1, 3, 8)))
            script.add(filler[len(script) : len(script) + gap])
        del script.ids[length:], script.learned[length:]
        if alphabet is not None:
            _forget_ambiguous(script, cue)
        return script.row()

    def _random(self, rng: np.random.Generator, size: int, alphabet: Array | None) -> list[int]:
        drawn = rng.integers(0, self.vocabulary if alphabet is None else len(alphabet), size)
        ids: list[int] = (drawn if alphabet is None else alphabet[drawn]).tolist()
        return ids


def _forget_ambiguous(script: Script, cue: int) -> None:
    """Learn only what the `cue` tokens before, wherever they stood earlier in the row, were always followed by."""
    followed: dict[tuple[int, ...], set[int]] = {}
    for i in range(cue, len(script)):
        after = followed.setdefault(tuple(script.ids[i - cue : i]), set())
        script.learned[i] = script.learned[i] and after == {script.ids[i]}
        after.add(script.ids[i])


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
        narrow=table.number("narrow", 0.0, most=1.0),
        alphabet=table.integers("alphabet", (8, 64), least=2, most=context.vocab_size),
    )
