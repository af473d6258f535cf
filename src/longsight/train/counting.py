"""Lists of words, some more often than the others: which are they?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longsight.model.markup import DOCUMENT
from longsight.train.facts import coined
from longsight.train.hiding import joined, listed
from longsight.train.packing import Sequences
from longsight.train.script import Material, Script
from longsight.train.table import Table
from longsight.train.tasks import Context, register

# Evaluation has this form, with words of its own.
ASKED = ("The word that occurs most often is", "The {n} words that occur most often are")


@dataclass(frozen=True)
class Counting:
    """asked: how many words are asked for, both ends included. zipf: share of rows whose words occur as 1 / rank
    squared; in the others those asked for make half of the list and occur equally often, the rest far less. The answer
    names the most frequent first, and of equals the one that comes first."""

    material: Material
    start: Sequence[int]
    asked: tuple[int, int]
    zipf: float

    def words(self) -> tuple[str, ...]:
        return ()

    def sample(self, rng: np.random.Generator, length: int) -> Sequences:
        asked, zipf = int(rng.integers(*self.asked, endpoint=True)), bool(rng.random() < self.zipf)
        words = self._words(rng, max(length // 6, 2 * asked))
        pieces = [self.material.encode(f"{word}\n") for word in words]
        while True:
            question = self._question(words[:asked])
            room = length - len(self.start) - len(question)
            counts = _counts(pieces, room, asked, zipf)
            if asked == 1 or min(counts[:asked]) > max(counts[asked:], default=0):
                break
            asked -= 1  # too short a row to tell so many from the others
        drawn = rng.permutation(np.repeat(np.arange(len(words)), counts)).tolist()
        first = {rank: drawn.index(rank) for rank in range(asked) if counts[rank]}
        order = sorted(first, key=lambda rank: (-counts[rank], first[rank]))
        script = Script().add(self.start)
        for rank in drawn:
            script.add(pieces[rank])
        return joined(script, self._question([words[rank] for rank in order or range(asked)]), length)

    def _words(self, rng: np.random.Generator, count: int) -> list[str]:
        """Different ones, coined or of the text."""
        coins, words = bool(rng.random() < 0.5), dict[str, None]()
        while len(words) < count:
            words[coined(rng) if coins or rng.random() < 0.1 else self.material.word(rng)] = None
        return list(words)

    def _question(self, top: Sequence[str]) -> Script:
        encode = self.material.encode
        begin = ASKED[len(top) > 1].format(n=len(top))
        return Script().add(encode(f"\n{begin}")).add(encode(f" {listed(top)}."), learn=True)


def _counts(pieces: Sequence[Sequence[int]], room: int, asked: int, zipf: bool) -> list[int]:
    """How often each word occurs: once at least, while there is room for it."""
    total = max(room, 0) * len(pieces) / sum(map(len, pieces))
    counts, left = [], max(room, 0)
    for rank, piece in enumerate(pieces):
        share = 0.6 / (rank + 1) ** 2 if zipf else (0.5 if rank < asked else 0.05) / asked
        counts.append(min(max(round(share * total), 1), left // len(piece)))
        left -= counts[-1] * len(piece)
    return counts


@register("counting")
def counting(table: Table, context: Context) -> Counting:
    material = context.material(table)
    return Counting(
        material,
        material.special(DOCUMENT),
        asked=table.integers("asked", (1, 5), least=1, most=64),
        zipf=table.number("zipf", 0.5, most=1.0),
    )
